"""Config files: Python files with a function, such as get_config(), that returns the config."""

import importlib
import inspect
import runpy
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from jaxpretrain.config.errors import InputError, nearest
from jaxpretrain.config.overrides import validate
from jaxpretrain.config.paths import expand
from jaxpretrain.config.renames import RENAMES


def load_config(spec: str) -> Any:
    """Loads the config of "FILE.py", get_config(), or of "FILE.py:ARG", get_config("ARG").

    A name without a folder and without ".py" is one of the configs that the package brings.
    InputError: no such file, a syntax error in it, no get_config() that takes such an argument, an
    InputError or ValueError raised by it, or a config with a value of the wrong type.
    """
    file, colon, argument = spec.partition(":")
    arguments = [argument] if colon else []
    path = locate(file, "config")
    if (get_config := function_in(path, "get_config")) is None:
        raise InputError(f"{path}: defines no function get_config()")
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError:
        trouble = "takes no argument" if colon else f"needs an argument: {file}:ARG"
        raise InputError(f"{spec}: get_config {trouble}") from None
    try:
        config = get_config(*arguments)
        if not is_dataclass(config) or isinstance(config, type):
            raise InputError(f"get_config must return a config, got {type(config).__name__}")
        validate(config)
    except (InputError, ValueError) as error:
        raise InputError(f"{spec}: {error}") from error
    except TypeError as error:
        _, _, name = str(error).partition("unexpected keyword argument ")
        name = name.strip("'")
        old = (row for row in RENAMES if row.has_moved and row.old.endswith(f".{name}"))
        if (row := next(old, None)) is None:
            raise
        now = f"{name} ({row.old}) is written in another way now: {row.now}"
        raise InputError(f"{spec}: {now}") from error
    return config


def packaged(kind: str = "config") -> dict[str, Path]:
    """Returns the file of each config, or sweep, that the package brings, by name, sorted."""
    folders = importlib.import_module("jaxpretrain.configs").__path__
    inside = "" if kind == "config" else f"{kind}s"
    files = [file for folder in folders for file in Path(folder, inside).glob("[a-z]*.py")]
    return {file.stem: file for file in sorted(files)}


def locate(name: str, kind: str) -> Path:
    """Returns the file of a packaged config or sweep; a path is that of a file as it is.

    InputError: the package brings none of that name.
    """
    if "/" in name or name.endswith(".py") or not name:
        return expand(name, f"--{kind}")
    if name in (known := packaged(kind)):
        return known[name]
    if Path(f"{name}.py").is_file():
        hint = f" A file of your own needs its ending: {name}.py"
    else:
        hint = nearest(name, known) or f" The package brings {', '.join(known)}."
    raise InputError(f"--{kind}={name}: no such {kind}.{hint}")


def function_in(file: Path, name: str) -> Callable[..., Any] | None:
    """Returns the function of that name in a file; None where the file defines none.

    InputError: there is no such file, it has a syntax error, or it raises InputError or ValueError.
    """
    if not file.parent.is_dir():
        raise InputError(f"{file}: there is no directory {file.parent}")
    if not file.is_file():
        hint = nearest(file.name, [path.name for path in sorted(file.parent.glob("*.py"))])
        raise InputError(f"{file}: no such file.{hint}")
    try:
        # Not an import: the file needs no package, and no stale bytecode can stand in for it.
        namespace = runpy.run_path(str(file))
    except SyntaxError as error:
        raise InputError(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except (InputError, ValueError) as error:
        raise InputError(f"{file}: {error}") from error
    found = namespace.get(name)
    return found if callable(found) else None
