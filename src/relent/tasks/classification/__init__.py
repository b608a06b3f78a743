"""Image classification, with or without a teacher whose outputs are stored."""
