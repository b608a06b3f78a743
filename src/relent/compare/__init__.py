"""Comparison of the runs of one task: tables, paired differences, claims, page. Loads neither torch nor Lightning."""
