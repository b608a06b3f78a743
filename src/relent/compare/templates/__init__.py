"""Template of the comparison page."""
