"""The trainer: the experiment, the one step, the one loop. It knows no model family."""
