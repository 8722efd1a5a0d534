"""Where prepared datasets are kept between runs."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """`$JAXPRETRAIN_CACHE`, or `~/.cache/jaxpretrain`; not necessarily there yet."""
    chosen = os.environ.get("JAXPRETRAIN_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "jaxpretrain"
