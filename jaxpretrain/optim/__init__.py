"""Optimizers and learning-rate schedules: small typed objects that build Optax transformations."""
