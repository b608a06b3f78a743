"""Distillation: a student learns a classifier from labels and, where the method asks for it, a stored teacher."""
