"""Sweeps: arms that differ in named settings, run with the same seeds, compared and told."""
