"""Network definitions only."""
