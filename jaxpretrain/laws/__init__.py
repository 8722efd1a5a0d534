"""Scaling laws: points of finished runs, laws fitted to them, and predictions that are scored."""
