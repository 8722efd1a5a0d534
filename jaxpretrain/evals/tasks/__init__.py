"""Zero-shot tasks: where their items come from and how their metrics are counted."""
