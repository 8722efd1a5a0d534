"""Strict typed overrides of a config: `--config.optim.schedule.peak=1e-3`.

A path names fields, indices of tuples and keys of dicts. The index after a tuple's last adds an
element with its defaults, where elements are groups of fields. A flag such as
`--config.optim.schedule=warmup_cosine` chooses a class for a field that is a union of dataclasses;
its fields can be set after that.

Overrides are applied one at a time, each by rebuilding the dataclasses around one value. A
`__post_init__` may therefore check single fields, and not how fields go together: between two
overrides they need not. Checks across fields belong after the last override, where the config is
resolved.
"""

import dataclasses
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, get_args, get_origin

from jaxpretrain.config import schema
from jaxpretrain.config.aliases import alias
from jaxpretrain.config.errors import InputError, nearest
from jaxpretrain.config.renames import renamed

T = TypeVar("T")


_Place = tuple[Any, schema.Hint]
"""The value at a place in a config, if any, and the type that a value must have."""


def apply_overrides(config: T, overrides: Iterable[tuple[str, str]]) -> T:
    """Returns the config with each (path, text) set, in order.

    InputError: a path does not exist, a text is no value of the type there, or a `__post_init__`
    refuses it. The line begins with the override and says what would be valid.
    """
    for path, text in overrides:
        config = _override(config, tuple(path.split(".")), text)
    return config


def validate(config: object, root: str = "--config") -> None:
    """Raises InputError for the first value that has another type or breaks the rules of its field.

    Configs that are built in Python need this. `root` is an argument of `flag`.
    """
    for keys, value, hint in schema.walk(config, type(config)):
        if schema.member_of(value, hint) is None:
            raise wrong_type(keys, value, hint, root)
        if against := schema.complaint(value, hint):
            raise InputError(f"{flag(keys, root)}={schema.value_text(value)}: {against}")


def flag(keys: Sequence[str], root: str = "--config") -> str:
    """Returns the flag of a place in a config, or the key of a place in a document.

    The root of a document is "FILE:", that of a command whose flags are the fields is "--". Without
    keys, it is the root alone.
    """
    path = ".".join(keys)
    if root.endswith(":"):
        return f"{root} {path}" if path else root[:-1]
    return f"{root}{path}" if root == "--" else ".".join((root, *keys))


def wrong_type(
    keys: schema.Keys, value: object, hint: schema.Hint, root: str = "--config"
) -> InputError:
    """Returns the error for a value that has not the type of its place."""
    expected = schema.expected_in_json(hint) if root.endswith(":") else schema.expected(hint)
    return InputError(f"{flag(keys, root)}: {expected}, got {reprlib.repr(value)}")


def unknown_field(
    keys: schema.Keys, cls: type, elsewhere: Sequence[str] = (), root: str = "--config"
) -> InputError:
    """Returns the error for an unknown last key; `elsewhere` are the paths of fields named so."""
    fields = schema.field_types(cls)
    there_is = f"; there is {' and '.join(flag([path]) for path in elsewhere)}" if elsewhere else ""
    hint = nearest(keys[-1], fields)
    if not there_is and not hint:
        hint = f" Its fields are {', '.join(fields)}."
    return InputError(f"{flag(keys, root)}: no such field in {cls.__name__}{there_is}.{hint}")


def _override(config: object, keys: schema.Keys, text: str) -> Any:
    trail: list[_Place] = [(config, type(config))]
    for depth, key in enumerate(keys, start=1):
        inside = {name: (value, hint) for name, value, hint in schema.children(*trail[-1])}
        place = inside.get(key) or _added(*trail[-1], key, is_last=depth == len(keys))
        if place is None:
            raise _refusal(config, *trail[-1], keys, depth)
        trail.append(place)
    *containers, (now, hint) = trail
    override = f"{flag(keys)}={text}"
    if dataclasses.is_dataclass(hint):
        fields = ", ".join(schema.field_types(hint))
        raise InputError(f"{override}: this is a group of fields; set one of them: {fields}")
    if get_origin(hint) is dict:
        raise InputError(f"{override}: set one key at a time: {flag(keys)}.KEY=value")
    try:
        value = schema.parse(text, hint)
        if dataclasses.is_dataclass(value) and type(value) is type(now):
            return config  # Chosen already: its fields stay as they are.
        for (container, _), key in zip(reversed(containers), reversed(keys), strict=True):
            value = _replaced(container, key, value)
    except (InputError, ValueError) as error:
        raise InputError(f"{override}: {error}{_meant(text, hint)}") from error
    return value


def _meant(text: str, kind: schema.Hint) -> str:
    """Returns a question whether a name is misspelled; "" where no other name is close."""
    names = schema.names(kind)
    unknown = (word for word in map(str.strip, text.split(",")) if word not in names)
    hint = nearest(next(unknown, ""), names)
    return hint and f".{hint}"


def _added(value: Any, hint: schema.Hint, key: str, *, is_last: bool) -> _Place | None:
    """Returns the item that `key` adds to a dict, or to a tuple of any length after its last.

    A group of fields in a tuple begins with its defaults; another item ends the path.
    """
    member = schema.member_of(value, hint)
    origin, args = get_origin(member), get_args(member)
    if origin is tuple and args[1:] == (...,) and key == str(len(value)):
        if dataclasses.is_dataclass(args[0]):
            return args[0](), args[0]  # pyright: ignore[reportCallIssue]
        return (None, args[0]) if is_last else None
    if origin is dict and key and is_last and not dataclasses.is_dataclass(args[1]):
        return None, args[1]
    return None


def _replaced(container: Any, key: str, value: object) -> Any:
    if isinstance(container, dict):
        return {**container, key: value}
    if isinstance(container, tuple):
        index = int(key)
        return (*container[:index], value, *container[index + 1 :])
    return dataclasses.replace(container, **{key: value})


def _refusal(
    config: object, value: object, hint: schema.Hint, keys: schema.Keys, depth: int
) -> InputError:
    """Returns the error for a path of which only `depth` - 1 keys exist, up to a value."""
    wanted, keys = keys, keys[:depth]
    *parents, key = keys
    owners = [n for n, cls in schema.choices(hint).items() if key in schema.field_types(cls)]
    if (now := renamed(".".join(wanted))) is not None:
        return InputError(f"{flag(wanted)} is written in another way now: {now}")
    if owners:
        return InputError(
            f"{flag(keys)}: field '{key}' belongs to {' and '.join(owners)}; "
            f"choose it first: {flag(parents)}={owners[0]}"
        )
    if dataclasses.is_dataclass(value):
        paths = [found for found, _, _ in schema.walk(config, type(config))]
        elsewhere = [".".join(path) for path in paths if path[-1:] == (key,)]
        if not elsewhere and (meant := alias(wanted[-1], map(".".join, paths))):
            return InputError(f"{flag(wanted)}: no such field. Did you mean {meant}?")
        return unknown_field(keys, type(value), elsewhere[:3])
    if isinstance(value, tuple):
        return InputError(f"{flag(keys)}: no such index; {flag(parents)} has {len(value)} elements")
    if isinstance(value, dict):
        return InputError(f"{flag(keys)}: no such key.{nearest(key, value)}")
    there = f"{schema.value_text(value)} ({schema.type_text(hint)})"
    return InputError(f"{flag(keys)}: {flag(parents)} is {there} and has no fields")
