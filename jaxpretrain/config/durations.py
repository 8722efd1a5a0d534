"""Durations such as "5000 steps", "2e12 tokens", "300e6 images" or "2 epochs".

They are kept exact until they become whole steps, once, rounded up: a run never sees less than
was asked for.
"""

import dataclasses
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from jaxpretrain.config.errors import InputError, nearest
from jaxpretrain.config.schema import parse_decimal

T = TypeVar("T")

_IS_DURATION = object()

Steps = Annotated[int | str, _IS_DURATION]
"""The type of a config field that holds a duration: text, or whole steps once resolved."""

_UNITS = ("steps", "tokens", "examples", "images", "sequences", "epochs")


@dataclass(frozen=True)
class Duration:
    """An exact amount of training in one of the units; images and sequences are examples."""

    value: Fraction
    unit: str

    def __str__(self) -> str:
        return f"{float(self.value):.12g} {self.unit}"

    def to_steps(
        self,
        *,
        batch_size: int,
        tokens_per_example: int | None = None,
        num_examples: int | None = None,
    ) -> int:
        """The smallest whole number of steps that lasts at least this long.

        Args:
            batch_size: examples of one step, over all devices.
            tokens_per_example: tokens of one example; None for a model without tokens.
            num_examples: examples of one epoch; None when unknown.
        """
        match self.unit:
            case "steps":
                return math.ceil(self.value)
            case "tokens":
                if tokens_per_example is None:
                    raise InputError(
                        f"duration '{self}': this model has no tokens; count steps or examples"
                    )
                num_wanted = self.value / tokens_per_example
            case "epochs":
                if num_examples is None:
                    raise InputError(
                        f"duration '{self}': the length of an epoch is unknown; "
                        "set data.num_examples"
                    )
                num_wanted = self.value * num_examples
            case _:
                num_wanted = self.value
        return math.ceil(num_wanted / batch_size)


def resolve_durations(
    config: T,
    *,
    batch_size: int,
    tokens_per_example: int | None = None,
    num_examples: int | None = None,
    path: str = "--config",
) -> T:
    """The config with every `Steps` field, at any depth, in whole steps.

    Raises:
        InputError: a text that is no duration, or one that cannot be counted in steps.
    """
    units = {
        "batch_size": batch_size,
        "tokens_per_example": tokens_per_example,
        "num_examples": num_examples,
    }
    hints = get_type_hints(type(config), include_extras=True)
    resolved: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # pyright: ignore[reportArgumentType]
        value, here = getattr(config, field.name), f"{path}.{field.name}"
        if dataclasses.is_dataclass(value):
            resolved[field.name] = resolve_durations(value, path=here, **units)
        elif value is not None and _is_duration(hints[field.name]):
            try:
                resolved[field.name] = parse_duration(value).to_steps(**units)
            except InputError as error:
                raise InputError(f"{here}: {error}") from error
    return dataclasses.replace(config, **resolved)  # pyright: ignore[reportArgumentType]


def _is_duration(hint: Any) -> bool:
    return _IS_DURATION in getattr(hint, "__metadata__", ()) or any(
        _is_duration(member) for member in get_args(hint)
    )


def parse_duration(text: str | int) -> Duration:
    """Reads "<number> <unit>", the unit in singular or plural; a bare number counts steps."""
    number, unit = _split(str(text))
    plural = unit if unit.endswith("s") else f"{unit}s"
    if plural not in _UNITS:
        hint = nearest(plural, _UNITS) or f" The units are {', '.join(_UNITS)}."
        raise InputError(f"duration '{text}': unknown unit '{unit}'.{hint}")
    try:
        value = Fraction(parse_decimal(number))
    except ValueError:
        raise InputError(f"duration '{text}': '{number}' is not a number") from None
    if value < 0:
        raise InputError(f"duration '{text}': must not be negative")
    return Duration(value, plural)


def _split(text: str) -> tuple[str, str]:
    match text.split():
        case [number]:
            return number, "steps"
        case [number, unit]:
            return number, unit
    raise InputError(f"duration '{text}': write a number and a unit, such as '5000 steps'")
