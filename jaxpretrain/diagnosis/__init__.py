"""The diagnosis of a run from its history: clock, findings, forecast, remaining time."""
