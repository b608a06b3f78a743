"""Training: one stage of one run, from its specification to its folder."""
