"""Durations such as "5000 steps", "2e12 tokens", "300e6 images" or "2 epochs".

They are kept exact until they become whole steps (or whole examples, for positions in the data),
once and rounded up, so that a run never sees less than its config says.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, TypeVar

from jaxpretrain.config import schema
from jaxpretrain.config.errors import InputError, nearest
from jaxpretrain.config.ranges import Between

T = TypeVar("T")


@dataclass(frozen=True)
class _Whole:
    """Marks the type of a field that is resolved to a whole number of this unit."""

    unit: str


Steps = Annotated[int | str, _Whole("steps"), Between(0, 2**31 - 1)]
"""The type of a config field that holds a duration: text, or whole steps once resolved.

Devices count steps with 32 bits. A narrower range stands around it: Annotated[Steps, Positive].
"""

Examples = Annotated[int | str, _Whole("examples"), Between(0, 2**63 - 1)]
"""The type of a config field that holds a position in the data: text, or whole examples."""


@dataclass(frozen=True)
class Pace:
    """The number of examples that a run has seen after each step, while its batch size grows."""

    batch_size: int
    """Number of examples of a step after the stages."""
    stages: tuple[tuple[int, int], ...] = ()
    """(number of steps, examples of each step) of the stages, in order."""

    def examples(self, steps: Fraction | int) -> Fraction:
        """Returns the number of examples of the first `steps` steps."""
        seen, left = Fraction(0), Fraction(steps)
        for length, size in self.stages:
            seen += min(left, length) * size
            left -= min(left, length)
        return seen + left * self.batch_size

    def samples(self, step: int) -> range:
        """Returns the samples of the run that update number `step` (from 1) reads."""
        return range(int(self.examples(step - 1)), int(self.examples(step)))

    def steps(self, examples: Fraction | int) -> Fraction:
        """Returns the number of steps that see so many examples, the inverse of `examples`."""
        steps, left = Fraction(0), Fraction(examples)
        for length, size in self.stages:
            here = min(left, Fraction(length * size))
            steps += here / size
            left -= here
        return steps + left / self.batch_size


NumExamples = int | Callable[[], int] | None
"""Number of examples of an epoch: known, counted where a duration needs it, or unknown."""


def as_pace(batch_size: int | Pace) -> Pace:
    """Returns the pace of a run; a number is a batch size that never changes."""
    return batch_size if isinstance(batch_size, Pace) else Pace(batch_size)


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
        batch_size: int | Pace,
        tokens_per_example: int | None = None,
        num_examples: NumExamples = None,
    ) -> int:
        """Returns the smallest whole number of steps that lasts at least this long.

        Args:
            batch_size: the number of examples of one step, over all devices.
            tokens_per_example: the number of tokens of an example; None for models without tokens.
            num_examples: the number of examples of an epoch; None where it is unknown.
        """
        pace = as_pace(batch_size)
        return math.ceil(pace.steps(self._examples(pace, tokens_per_example, num_examples)))

    def to_examples(
        self,
        *,
        batch_size: int | Pace,
        tokens_per_example: int | None = None,
        num_examples: NumExamples = None,
    ) -> int:
        """Returns the smallest whole number of examples that lasts at least this long."""
        return math.ceil(self._examples(as_pace(batch_size), tokens_per_example, num_examples))

    def _examples(
        self, pace: Pace, tokens_per_example: int | None, num_examples: NumExamples
    ) -> Fraction:
        match self.unit:
            case "steps":
                return pace.examples(self.value)
            case "tokens":
                if tokens_per_example is None:
                    raise InputError(
                        f"duration '{self}': this model has no tokens; count steps or examples"
                    )
                return self.value / tokens_per_example
            case "epochs":
                if num_examples is None:
                    raise InputError(
                        f"duration '{self}': the length of an epoch is unknown; "
                        "set data.num_examples"
                    )
                return self.value * (num_examples() if callable(num_examples) else num_examples)
        return self.value


def resolve_durations(
    config: T,
    *,
    batch_size: int | Pace,
    tokens_per_example: int | None = None,
    num_examples: NumExamples = None,
    path: str = "--config",
) -> T:
    """Returns the config with `Steps` fields in whole steps and `Examples` fields in examples.

    Fields at any depth are resolved, also in the dataclasses of a tuple or dict.

    Raises:
        InputError: a text that is no duration, one that cannot be counted in steps, or a number of
            steps outside the range of its field.
    """
    units = {
        "batch_size": batch_size,
        "tokens_per_example": tokens_per_example,
        "num_examples": num_examples,
    }

    def resolved(keys: schema.Keys, value: Any, hint: schema.Hint) -> Any:
        unit = _unit(hint)
        if unit is None or value is None:
            return value
        here = ".".join((path, *keys))
        try:
            duration = parse_duration(value, unit)
            whole = (duration.to_steps if unit == "steps" else duration.to_examples)(**units)
        except InputError as error:
            raise InputError(f"{here}: {error}") from error
        if against := schema.complaint(whole, hint):
            makes = "" if str(value) == str(whole) else f" makes {whole} {unit}"
            raise InputError(f"{here}={value}{makes}: {against}")
        return whole

    return schema.rebuild(config, type(config), resolved)


def _unit(hint: schema.Hint) -> str | None:
    """Returns the unit that a field of this type is resolved to; None for other fields."""
    return next((mark.unit for mark in schema.all_marks(hint) if isinstance(mark, _Whole)), None)


def whole_steps(duration: int | str) -> int:
    """Returns a duration that `resolve_durations` has turned into whole steps."""
    if not isinstance(duration, int):
        raise TypeError(f"the duration {duration!r} is not resolved to steps")
    return duration


def parse_duration(text: str | int, default_unit: str = "steps") -> Duration:
    """Reads "<number> <unit>", the unit in singular or plural; a bare number is of the default."""
    number, unit = _split(str(text), default_unit)
    plural = unit if unit.endswith("s") else f"{unit}s"
    if plural not in _UNITS:
        hint = nearest(plural, _UNITS) or f" The units are {', '.join(_UNITS)}."
        raise InputError(f"duration '{text}': unknown unit '{unit}'.{hint}")
    try:
        value = Fraction(schema.parse_decimal(number))
    except ValueError:
        raise InputError(f"duration '{text}': '{number}' is not a number") from None
    if value < 0:
        raise InputError(f"duration '{text}': must not be negative")
    return Duration(value, plural)


def _split(text: str, default_unit: str) -> tuple[str, str]:
    match text.split():
        case [number]:
            return number, default_unit
        case [number, unit]:
            return number, unit
    raise InputError(f"duration '{text}': write a number and a unit, such as '5000 steps'")
