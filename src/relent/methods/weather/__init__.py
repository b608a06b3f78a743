"""Ensemble weather forecasting: FuXi-ENS, the contrasts that its paper draws, and plain baselines."""
