"""What a run will need before it starts: memory, time and the largest batch, for any machine."""
