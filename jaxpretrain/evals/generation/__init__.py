"""Text from a language model, token by token."""
