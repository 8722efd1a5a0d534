"""JSON documents. Each error in one is a line that names the file and the key.

Files of runs, data and models are written by one program and read by another, edited, cut and
damaged. Each kind of file has a dataclass with the types of the keys that are read.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import Document, from_dict

T = TypeVar("T")

_DIGITS = 19
"""Number of characters of a whole number that 64 bits hold."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(content: str | bytes) -> Any:
    """Returns the value of a JSON text.

    Whole numbers beyond 64 bits become floats, so that they are no sizes or counts. The ValueError
    for another text says what is wrong.
    """
    text = content if isinstance(content, str) else content.decode("utf-8-sig")
    try:
        value = json.loads(text, parse_int=_whole_number)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # half a character is no text
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def read_object(path: Path, advice: str = "") -> Document:
    """Reads the JSON object in a file; an InputError about it ends with `advice`."""
    advice = advice and f"; {advice}"
    try:
        document = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file{advice}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}){advice}") from None
    except ValueError as error:
        raise InputError(f"{path}: is not valid JSON ({error}){advice}") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: is not a JSON object{advice}")
    return document


def checked(cls: type[T], document: Mapping[str, object], where: Path | str) -> T:
    """Returns the fields of `cls` in a document; other keys are ignored.

    The InputError for a field that is missing or of another type names it and `where`.
    """
    return from_dict(cls, document, f"{where}:", ignore_unknown=True)


def _whole_number(text: str) -> int | float:
    return int(text) if len(text) <= _DIGITS else float(text)
