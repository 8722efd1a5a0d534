"""The folder that keeps prepared datasets and compiled programs between runs."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Returns `$JAXPRETRAIN_CACHE`, or `~/.cache/jaxpretrain`; the folder need not exist yet."""
    chosen = os.environ.get("JAXPRETRAIN_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "jaxpretrain"
