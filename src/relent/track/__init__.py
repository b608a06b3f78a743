"""Replays finished runs into MLflow: one writer, after the runs, so that parallel jobs never meet in one store."""
