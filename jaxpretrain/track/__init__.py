"""Trackers: a run's folder mirrored to Weights & Biases and MLflow, live or later."""
