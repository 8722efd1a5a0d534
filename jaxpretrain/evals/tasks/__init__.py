"""Tasks: the sources of their items, and their metrics."""
