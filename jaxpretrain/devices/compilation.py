"""The cache of compiled programs, for all commands and later runs."""

import os

import jax

from jaxpretrain.storage.files import cache_dir


def keep_compiled() -> None:
    """Turns on the cache of compiled programs. Call it before the first compilation."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
