"""Configs as JSON-able dicts and back without loss, their differences, and JSON files.

Tuples become lists. Where a field is a union, a dataclass carries its choice under "class".

Files of runs, data and models are written by one program and read by another, edited, cut and
damaged: each error in one is a line that names the file and the key. Each kind of file has a
dataclass with the types of the keys that are read.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from jaxpretrain.config import schema
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import flag, unknown_field, validate, wrong_type

T = TypeVar("T")

_NO_DEFAULT = dataclasses.MISSING
_DIGITS = 19
"""Number of characters of a whole number that 64 bits hold."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

Document = dict[str, Any]
"""A JSON object, such as a saved config."""

Change = tuple[str, Any, Any]
"""A difference of two saved configs: (path, value in the first, value in the second)."""

ABSENT = "absent"
"""The value in a difference of the side that has none at that path."""


def to_dict(config: object) -> Document:
    """Returns the config as dicts, lists and scalars; InputError for a value of the wrong type."""
    validate(config)
    return _encode(config, type(config))


def from_dict(
    cls: type[T],
    data: Mapping[str, object],
    root: str = "--config",
    *,
    ignore_unknown: bool = False,
) -> T:
    """Returns the config that to_dict() wrote, or another dataclass from JSON.

    A missing field takes its default. InputError: a field is unknown (unless those are ignored), of
    the wrong type, or missing without a default; the line calls the whole `root`.
    """
    return _Decoder(root, ignore_unknown).decode(data, cls, ())


def diff(a: Mapping[str, object], b: Mapping[str, object]) -> list[Change]:
    """Returns (path, value in a, value in b) for all differences of two outputs of to_dict().

    A list of scalars is one value. A side without a value has ABSENT.
    """
    leaves_a, leaves_b = _flatten(a), _flatten(b)
    rows = [
        (keys, leaves_a.get(keys, ABSENT), leaves_b.get(keys, ABSENT))
        for keys in sorted(leaves_a.keys() | leaves_b.keys(), key=_by_number_or_name)
    ]
    return [(".".join(keys), left, right) for keys, left, right in rows if left != right]


def parse_json(content: str | bytes) -> Any:
    """Returns the value of a JSON text; the ValueError for another text says what is wrong.

    Whole numbers beyond 64 bits become floats, so that they are no sizes or counts.
    """
    text = content if isinstance(content, str) else content.decode("utf-8-sig")
    whole = lambda digits: int(digits) if len(digits) <= _DIGITS else float(digits)  # noqa: E731
    try:
        value = json.loads(text, parse_int=whole)
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
    """Returns the fields of `cls` in a document, without other keys; an error names `where`."""
    return from_dict(cls, document, f"{where}:", ignore_unknown=True)


def _encode(value: object, hint: schema.Hint) -> Any:
    items = {
        key: _encode(child, child_hint) for key, child, child_hint in schema.children(value, hint)
    }
    if dataclasses.is_dataclass(value):
        choice = {} if dataclasses.is_dataclass(hint) else {"class": schema.snake_case(type(value))}
        return choice | items
    if isinstance(value, tuple):
        return list(items.values())
    return items if isinstance(value, dict) else value


@dataclasses.dataclass(frozen=True)
class _Decoder:
    """Builds dataclasses from JSON."""

    root: str
    ignore_unknown: bool

    def decode(self, data: object, hint: schema.Hint, keys: schema.Keys) -> Any:
        """Returns the value of a type from the data at a path."""
        if hint is Any:
            return data
        options = schema.choices(hint)
        if isinstance(data, Mapping) and options and ("class" in data or len(options) == 1):
            return self._group(data, options, keys)
        value = tuple(data) if isinstance(data, list) else data
        if dataclasses.is_dataclass(value) or schema.member_of(value, hint) is None:
            raise wrong_type(keys, data, hint, self.root)
        items = {
            key: self.decode(child, child_hint, (*keys, key))
            for key, child, child_hint in schema.children(value, hint)
        }
        if isinstance(value, tuple):
            return tuple(items.values())
        return items if isinstance(value, dict) else value

    def _group(
        self, data: Mapping[str, object], options: dict[str, type], keys: schema.Keys
    ) -> Any:
        choice = data.get("class", next(iter(options)))
        if not isinstance(choice, str) or choice not in options:
            where = flag(keys, self.root)
            raise InputError(f"{where}={choice}: expected one of {', '.join(options)}")
        cls = options[choice]
        types = schema.field_types(cls)
        values = {}
        for name, value in data.items():
            if name in types:
                values[name] = self.decode(value, types[name], (*keys, name))
            elif name != "class" and not self.ignore_unknown:
                raise unknown_field((*keys, name), cls, root=self.root)
        for field in dataclasses.fields(cls):
            defaults = (field.default, field.default_factory)
            if field.name in types.keys() - values.keys() and set(defaults) == {_NO_DEFAULT}:
                raise InputError(f"{flag((*keys, field.name), self.root)}: is missing")
        try:
            return cls(**values)
        except (InputError, ValueError) as error:
            raise InputError(f"{flag(keys, self.root)}: {error}") from error


def _flatten(value: object, keys: schema.Keys = ()) -> dict[schema.Keys, Any]:
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        items = ((str(index), item) for index, item in enumerate(value))
    else:
        return {keys: value}
    leaves = {}
    for key, item in items:
        leaves |= _flatten(item, (*keys, key))
    return leaves


def _by_number_or_name(keys: schema.Keys) -> list[tuple[int, str]]:
    return [(int(key) if key.isdecimal() else -1, key) for key in keys]


def finite(value: Any) -> Any:
    """Returns a document with None for each number that is not finite, which JSON has not."""
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
