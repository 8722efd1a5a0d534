"""Checkpoints: named arrays in and out, with checksums."""
