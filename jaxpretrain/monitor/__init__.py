"""The monitoring of a run: metrics to files and the terminal, traces, hosts compared."""
