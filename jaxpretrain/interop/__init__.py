"""Checkpoints of other programs, read and written by tables of names."""
