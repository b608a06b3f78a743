"""Alignment: a language model learns from preferences or rewards while it stays close to a reference."""
