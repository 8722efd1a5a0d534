"""Whether what a model computes depends on its width or depth, where sizes share settings."""
