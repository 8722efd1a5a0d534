"""The meaning of a field for a run that goes on: marks in `typing.Annotated`, beside ranges.

`remat: Annotated[RematChoice, Mark.NO_EFFECT] = "full"`. A mark holds for all below its field too.
"""

from collections.abc import Iterator
from dataclasses import is_dataclass
from enum import Enum, auto
from typing import get_args, get_origin

from jaxpretrain.config import schema


class Mark(Enum):
    """A mark of a field."""

    IDENTITY = auto()
    """Another value makes another run; fields without this mark may change when a run goes on."""
    NO_EFFECT = auto()
    """The value says where or how fast, not what: the result is the same, rounding aside."""
    SAMPLE_ORDER = auto()
    """The value decides, besides the seed, which example of the same files a sample is."""


def marks_at(cls: type, path: str) -> set[Mark]:
    """Returns the marks of all fields on a path of a config class; unknown names have none."""
    hints: list[schema.Hint] = [cls]
    found: set[Mark] = set()
    for key in path.split("."):
        hints = [inner for hint in hints for inner in _inside(hint, key)]
        marks = (mark for hint in hints for mark in schema.all_marks(hint))
        found |= {mark for mark in marks if isinstance(mark, Mark)}
    return found


def _inside(hint: schema.Hint, key: str) -> Iterator[schema.Hint]:
    """Yields the types that a value of a type can have at a field, an index or a key."""
    for member in schema.members(hint):
        if is_dataclass(member):
            types = schema.field_types(member)
            if key in types:
                yield types[key]
        elif get_origin(member) is tuple:
            yield from (arg for arg in get_args(member) if arg is not ...)
        elif get_origin(member) is dict:
            yield get_args(member)[1]
