"""Scores of predictions and the inference over them, as pure functions: the one place where they are written."""
