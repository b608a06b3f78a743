"""Alignment of a language model with preferences: a base model, pairs that a reward labels, policies judged exactly."""
