"""Data: text and image sources, token files, the global order, and the loader."""
