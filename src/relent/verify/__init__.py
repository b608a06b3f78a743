"""Verification of any ensemble forecast against any truth: scores with intervals, scorecards, figures."""
