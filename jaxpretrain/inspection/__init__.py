"""What is looked at before a run: the batches of its steps, and the machine."""
