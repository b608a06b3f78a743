"""Evaluation: predictions of one run → `scores.json` and the run's figures. Loads no Lightning."""
