"""Sums of log-probabilities of continuations, many to a batch."""
