"""Watching a run: where metrics go, how long things take, what the terminal shows."""
