"""Text to train and evaluate on: one corpus, or a mixture of several."""
