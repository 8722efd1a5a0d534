"""The types that a config field may have, and their values as text.

Overrides, checks, saved configs and help all use these functions. So a type works everywhere or is
refused, with the name of its field, at first use. A field is one of

- bool, int, float (finite), str, None, Literal;
- a dataclass: a group of fields;
- tuple[X, ...], tuple[X, Y] or dict[str, X];
- a union of these, with at most one tuple and one dict among them. The dataclasses in a union are
  choices, named by their class in snake_case;
- typing.Annotated[X, rule, ...]: X whose values also obey rules, such as a range, or a field with
  marks: `remat: Annotated[RematChoice, Mark.NO_EFFECT] = "full"`;
- dict[str, Any] in a dataclass that describes a JSON document: an object that is not looked into.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal, DecimalException
from enum import Enum, auto
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

Hint = Any
"""A type annotation: a class, a union, or a generic such as tuple[int, ...]."""

Keys = tuple[str, ...]
"""The path from a config to one of its values: field names, indices and dict keys."""

# In the order in which the members of a union are tried on a text, the least permissive first.
_KINDS = (Literal, NoneType, bool, int, float, dict, tuple, str)

_IN_JSON = {
    NoneType: "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a list",
}


class Rule:
    """A rule for the values of a field beyond their type; it stands in typing.Annotated."""

    def complaint(self, value: object) -> str:
        """Returns the complaint about a value of the right type; "" for a valid one."""
        raise NotImplementedError


class Mark(Enum):
    """A mark of a field."""

    IDENTITY = auto()
    """Another value makes another run; fields without this mark may change when a run goes on."""
    NO_EFFECT = auto()
    """The value says where or how fast, not what: the result is the same, rounding aside."""
    MAY_CHANGE = auto()
    """The value may change when a run goes on, though its part makes another run."""
    LOSS = auto()
    """The value decides what the loss measures: losses of other values are not comparable."""
    SAME_SCORES = auto()
    """The value changes no score of a given model: not what is held out, nor how it is read."""
    SAMPLE_ORDER = auto()
    """The value decides, besides the seed, which example of the same files a sample is."""


def snake_case(cls: type) -> str:
    """WarmupCosine -> warmup_cosine, HFTokenizer -> hf_tokenizer, AdamW -> adamw."""
    boundary = r"(?<=[a-z0-9])(?=[A-Z][A-Za-z0-9])|(?<=[A-Z])(?=[A-Z][a-z])"
    return re.sub(boundary, "_", cls.__name__).lower()


@functools.cache
def field_types(cls: type) -> Mapping[str, Hint]:
    """Returns the type of each field of a dataclass; TypeError for a type that is not supported."""
    hints = get_type_hints(cls, include_extras=True)
    types = {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}
    for name, hint in types.items():
        if not _is_supported(hint):
            raise TypeError(f"{cls.__name__}.{name}: a config field cannot have the type {hint}")
    return types


def members(hint: Hint) -> tuple[Hint, ...]:
    """Returns the members of a union without their marks; another type is its own only member."""
    return tuple(member for member, _ in marked_members(hint))


def marked_members(hint: Hint, marks: tuple[object, ...] = ()) -> Iterator[tuple[Hint, tuple]]:
    """Yields (member, its marks) of each member of a type; marks stand in typing.Annotated.

    `marks` are the marks of the whole type, where the hint is a part of it.
    """
    if get_origin(hint) is Annotated:
        inner, *own = get_args(hint)
        yield from marked_members(inner, (*marks, *own))
    elif get_origin(hint) in (Union, UnionType):
        for arg in get_args(hint):
            yield from marked_members(arg, marks)
    else:
        yield hint, marks


def all_marks(hint: Hint, kind: type[T]) -> list[T]:
    """Returns the marks of one kind of all members of a type."""
    marks = (mark for _, marks in marked_members(hint) for mark in marks)
    return [mark for mark in marks if isinstance(mark, kind)]


def marks_at(cls: type, path: str) -> set[Mark]:
    """Returns the marks of all fields on a path of a config class; unknown names have none."""
    hints: list[Hint] = [cls]
    found: set[Mark] = set()
    for key in path.split("."):
        hints = [inner for hint in hints for inner in _inside(hint, key)]
        found.update(mark for hint in hints for mark in all_marks(hint, Mark))
    return found


def _inside(hint: Hint, key: str) -> Iterator[Hint]:
    """Yields the types that a value of a type can have at a field, an index or a key."""
    for member in members(hint):
        if dataclasses.is_dataclass(member):
            types = field_types(member)
            if key in types:
                yield types[key]
        elif get_origin(member) is tuple:
            yield from (arg for arg in get_args(member) if arg is not ...)
        elif get_origin(member) is dict:
            yield get_args(member)[1]


def choices(hint: Hint) -> dict[str, type]:
    """Returns the dataclasses among the members of a type, by name."""
    return {
        snake_case(member): member
        for member in members(hint)
        if isinstance(member, type) and dataclasses.is_dataclass(member)
    }


def member_of(value: object, hint: Hint) -> Hint | None:
    """Returns the member of a type that a value has, without a look into containers; or None."""
    return next((member for member in members(hint) if _accepts(member, value)), None)


def complaint(value: object, hint: Hint) -> str:
    """Returns the complaint of a type's rules about a value that it accepts; "" without one.

    It names the other values that may be written: "must be positive, or none".
    """
    complaints, others = [], []
    for member, marks in marked_members(hint):
        if not _accepts(member, value):
            others += _names(member)
            continue
        rules = (mark for mark in marks if isinstance(mark, Rule))
        complaints.append(next(filter(None, (rule.complaint(value) for rule in rules)), ""))
    if "" in complaints or not complaints:
        return ""
    return complaints[0] + (f", or {' or '.join(others)}" if others else "")


def children(value: Any, hint: Hint) -> Iterator[tuple[str, Any, Hint]]:
    """Yields (key, value, type) of each value directly inside a value of this type."""
    member = member_of(value, hint)
    if dataclasses.is_dataclass(member):
        for name, field_type in field_types(type(value)).items():
            yield name, getattr(value, name), field_type
    elif get_origin(member) is tuple:
        item_types = _item_types(member, len(value))
        for index, (item, item_type) in enumerate(zip(value, item_types, strict=True)):
            yield str(index), item, item_type
    elif get_origin(member) is dict:
        for key, item in value.items():
            yield key, item, get_args(member)[1]


def walk(value: object, hint: Hint, keys: Keys = ()) -> Iterator[tuple[Keys, Any, Hint]]:
    """Yields (keys, value, type) of a value and of all values inside it, outer ones first."""
    yield keys, value, hint
    for key, child, child_type in children(value, hint):
        yield from walk(child, child_type, (*keys, key))


def rebuild(
    value: object, hint: Hint, change: Callable[[Keys, Any, Hint], Any], keys: Keys = ()
) -> Any:
    """Returns a value with `change(keys, value, type)` in place of each scalar inside it."""
    items = {
        key: rebuild(child, child_hint, change, (*keys, key))
        for key, child, child_hint in children(value, hint)
    }
    if dataclasses.is_dataclass(value):
        return dataclasses.replace(value, **items)  # pyright: ignore[reportArgumentType]
    if isinstance(value, tuple):
        return tuple(items.values())
    return items if isinstance(value, dict) else change(keys, value, hint)


def parse(text: str, hint: Hint) -> Any:
    """Returns the value of this type in a text; ValueError says what was expected.

    A choice stands for its dataclass with default values. Tuples are comma-separated.
    """
    for member in sorted(members(hint), key=_permissiveness):
        try:
            value = _parse_member(text, member)
        except _AgainstRules:
            raise
        except ValueError:
            continue
        if against := complaint(value, hint):
            raise _AgainstRules(against)
        return value
    raise ValueError(expected(hint))


def parse_decimal(text: str) -> Decimal:
    """Returns the exact value of a finite number of sane size; ValueError for any other text."""
    try:
        number = Decimal(text)
    except DecimalException:
        raise ValueError(f"'{text}' is not a number") from None
    # Exact integers and fractions of 1e999999999 would take forever.
    if not number.is_finite() or abs(number.adjusted()) > 30:
        raise ValueError(f"'{text}' is not a number of sane size")
    return number


def value_text(value: object) -> str:
    """Returns a value as it is written on the command line and as parse() reads it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if dataclasses.is_dataclass(value):
        return snake_case(type(value))
    if isinstance(value, tuple):
        return ",".join(map(value_text, value))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {value_text(item)}" for key, item in value.items()) + "}"
    return str(value)


def names(hint: Hint) -> list[str]:
    """Returns the names that may be written in a value of a type, also inside tuples."""
    found = []
    for member in members(hint):
        found += _names(member)
        if get_origin(member) is tuple:
            found += [name for arg in get_args(member) if arg is not ... for name in names(arg)]
    return found


def type_text(hint: Hint) -> str:
    """Returns the values of a type: "int (positive) | auto", "int,int", "adamw | lion"."""
    texts = []
    for member, marks in marked_members(hint):
        ranges = [str(mark) for mark in marks if isinstance(mark, Rule) and member in (int, float)]
        within = f" ({' and '.join(ranges)})" if ranges else ""
        texts += [f"{text}{within}" for text in _alternatives(member)]
    return " | ".join(texts)


def expected(hint: Hint) -> str:
    """Returns the part of an error line that names the values of a type."""
    alternatives = [
        "finite float" if member is float else text
        for member in members(hint)
        for text in _alternatives(member)
    ]
    if len(alternatives) > 1 and all(_names(member) for member in members(hint)):
        return f"expected one of {', '.join(alternatives)}"
    return f"expected {' or '.join(alternatives)}"


class _AgainstRules(ValueError):
    """A text is a value of the right type that the rules of the type forbid."""


def expected_in_json(hint: Hint) -> str:
    """Returns the part of an error line that names the values of a type in a JSON document."""
    texts = []
    for member in members(hint):
        kind = get_origin(member) or member
        one_of = f"one of {', '.join(map(value_text, get_args(member)))}"
        texts.append(one_of if kind is Literal else _IN_JSON.get(kind, "an object"))
    return f"expected {' or '.join(texts)}"


def _is_supported(hint: Hint) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _is_supported(args[0])
    if origin in (Union, UnionType):
        return all(map(_is_supported, args))
    if origin is tuple:
        return bool(args) and all(_is_supported(arg) for arg in args if arg is not Ellipsis)
    if origin is dict:
        return args[0] is str and (args[1] is Any or _is_supported(args[1]))
    return origin is Literal or hint in (bool, int, float, str, NoneType) or bool(choices(hint))


def _accepts(member: Hint, value: object) -> bool:
    origin = get_origin(member)
    if member is Any:
        return True
    if origin is Literal:
        # Not `in`: 1 == True.
        return any(type(value) is type(arg) and value == arg for arg in get_args(member))
    if origin is tuple:
        return type(value) is tuple and len(value) == len(_item_types(member, len(value)))
    if origin is dict:
        return type(value) is dict and all(type(key) is str for key in value)
    if member is float:
        return type(value) is int or (type(value) is float and math.isfinite(value))
    return type(value) is member


def _item_types(member: Hint, num_items: int) -> tuple[Hint, ...]:
    args = get_args(member)
    return args[:1] * num_items if args[-1] is Ellipsis else args


def _names(member: Hint) -> dict[str, Any]:
    """Returns the names of the values of a type, where it has names."""
    if get_origin(member) is Literal:
        return {value_text(arg): arg for arg in get_args(member)}
    if member is NoneType:
        return {"none": None}
    if member is bool:
        return {"true": True, "false": False}
    return choices(member)


def _alternatives(member: Hint) -> list[str]:
    origin, args = get_origin(member), get_args(member)
    if origin is tuple:
        items = [f"({text})" if " " in (text := type_text(arg)) else text for arg in args[:-1]]
        return [",".join([*items, "..." if args[-1] is Ellipsis else type_text(args[-1])])]
    if origin is dict:
        return [f"{{name: {type_text(args[1])}}}"]
    return list(_names(member)) or [member.__name__]


def _permissiveness(member: Hint) -> int:
    kind = get_origin(member) or member
    return _KINDS.index(kind) if kind in _KINDS else 0


def _parse_member(text: str, member: Hint) -> Any:
    origin = get_origin(member)
    if names := _names(member):
        if member in (bool, NoneType):
            text = text.lower()
        if text not in names:
            raise ValueError(expected(member))
        value = names[text]
        return value() if isinstance(value, type) else value
    if origin is tuple:
        if text[:1] + text[-1:] in ("[]", "()"):
            raise ValueError(f"{expected(member)}, without brackets")
        items = [item.strip() for item in text.split(",")] if text else []
        types = _item_types(member, len(items))
        return tuple(parse(item, item_type) for item, item_type in zip(items, types, strict=True))
    if member is int:
        number = parse_decimal(text)
        if number != int(number):
            raise ValueError(expected(int))
        return int(number)
    if member is float:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(expected(float))
        return number
    if member is str:
        return text
    raise ValueError(expected(member))
