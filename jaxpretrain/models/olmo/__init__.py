"""The decoder of OLMo and its published sizes."""
