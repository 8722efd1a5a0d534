"""The published configs, to import and to run by name: `from jaxpretrain.configs import olmo_nano`.

They lie beside this file in an installed package, and in the top folder `configs/` of a clone.
"""

from pathlib import Path

_CLONE = Path(__file__).parents[2]

if (_CLONE / "pyproject.toml").is_file() and (_CLONE / "configs").is_dir():
    __path__.append(str(_CLONE / "configs"))
