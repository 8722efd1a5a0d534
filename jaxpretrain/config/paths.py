"""Paths that users write in configs and on command lines; `~` is their home directory.

Functions here are for paths of this machine; `storage/paths.py` also takes URLs.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from jaxpretrain.config import schema
from jaxpretrain.config.errors import InputError

T = TypeVar("T")

_NO_URL = "is a URL; this takes a path of this machine (copy from or to the bucket)"


@dataclass(frozen=True)
class _IsPath(schema.Rule):
    """Marks a text that is a path."""

    may_be_url: bool = False

    def complaint(self, value: object) -> str:
        if not isinstance(value, str):
            return ""
        return _complaint(value) or ("" if self.may_be_url else _is_url(value))


PathText = Annotated[str, _IsPath()]
"""The type of a config field that holds a path of this machine."""
PlaceText = Annotated[str, _IsPath(may_be_url=True)]
"""The type of a config field that holds a path or a URL, which `storage/paths.py` reads."""


def expand(text: str, flag: str) -> Path:
    """Returns the path in a text, with `~` expanded; an error begins with the flag, if any."""
    if against := _complaint(text) or _is_url(text):
        raise InputError(f"{flag}={text}: {against}" if flag else f"{text}: {against}")
    return Path(text).expanduser()


def as_local_path(text: str) -> Path:
    """Returns the path of a command-line flag; this is the `type` of an argument."""
    if against := _complaint(text) or _is_url(text):
        raise argparse.ArgumentTypeError(against)
    return Path(text).expanduser()


def expand_paths(config: T) -> T:
    """Returns the config with `~` expanded in each of its paths, which must be valid."""

    def expanded(keys: schema.Keys, value: Any, hint: schema.Hint) -> Any:
        is_path = isinstance(value, str) and schema.all_marks(hint, _IsPath)
        return str(Path(value).expanduser()) if is_path and value.startswith("~") else value

    return schema.rebuild(config, type(config), expanded)


def _is_url(text: str) -> str:
    return _NO_URL if "://" in text else ""


def _complaint(text: str) -> str:
    if not text.strip():
        return "is empty: write a path"
    scheme, colon, rest = text.partition(":")
    is_meant = (scheme.isalnum() and rest[:1] in ("", "/")) or scheme in ("gs", "s3")
    if colon and is_meant and not rest.startswith("//"):
        return f"is neither a path nor a URL; write {scheme}://{rest.strip('/') or 'BUCKET/FOLDER'}"
    try:
        Path(text).expanduser()
    except RuntimeError:
        return f"there is no user {Path(text).parts[0].removeprefix('~')}, whose home this names"
    return ""
