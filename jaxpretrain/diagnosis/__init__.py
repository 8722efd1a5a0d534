"""What a run's history says: its clock, findings, forecast and time that is left."""
