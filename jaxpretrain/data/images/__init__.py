"""Images to train and evaluate on."""
