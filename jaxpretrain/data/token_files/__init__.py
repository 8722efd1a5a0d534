"""Token files with their manifest, masks and tokenizer."""
