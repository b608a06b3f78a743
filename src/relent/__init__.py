"""Relent: train, distil, align and verify models under KL-divergence and cross-entropy objectives.

Importing this package imports neither torch nor lightning: the workflow plans thousands of jobs with it.
"""

__version__ = "0.1.0"
