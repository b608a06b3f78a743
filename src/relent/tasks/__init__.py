"""Kinds of task: `training` binds data and networks, `evaluation` turns predictions into scores and figures."""
