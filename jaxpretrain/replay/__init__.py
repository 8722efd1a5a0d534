"""Stretches of a run, computed again: what the run could not afford to record."""
