"""Durations such as "5000 steps", "2e12 tokens", "300e6 images" or "2 epochs".

They are kept exact until they become whole steps (or whole examples, for positions in the data),
once and rounded up, so that a run never sees less than its config says.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, TypeVar

from jaxpretrain.config import schema
from jaxpretrain.config.errors import InputError, nearest
from jaxpretrain.config.ranges import Between, NonNegative

T = TypeVar("T")


@dataclass(frozen=True)
class _Whole:
    """Marks the type of a field that is resolved to a whole number of this unit."""

    unit: str
    or_time: bool = False
    """True where a time may stand instead, which stays a text in whole seconds."""


Steps = Annotated[int | str, _Whole("steps"), Between(0, 2**31 - 1)]
"""The type of a config field that holds a duration: text, or whole steps once resolved.

Devices count steps with 32 bits. A narrower range stands around it: Annotated[Steps, Positive].
"""

StepsOrTime = Annotated[int | str, _Whole("steps", or_time=True), Between(0, 2**31 - 1)]
"""The type of a field that holds a duration in steps as `Steps`, or a time: "1200 seconds"."""

Seconds = Annotated[int | str, _Whole("seconds"), Between(1, 2**31 - 1)]
"""The type of a config field that holds a time: text, or whole seconds once resolved."""

Examples = Annotated[int | str, _Whole("examples"), NonNegative]
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


_UNITS = ("steps", "tokens", "examples", "images", "sequences", "epochs")
_TIMES = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}
"""Unit of time -> seconds."""


@dataclass(frozen=True)
class Duration:
    """An exact amount of training in one of the units; images and sequences are examples."""

    value: Fraction
    unit: str

    def __str__(self) -> str:
        return f"{float(self.value):.12g} {self.unit}"

    def examples(
        self,
        pace: Pace,
        tokens_per_example: int | None,
        num_examples: int | Callable[[], int] | None,
    ) -> Fraction:
        """Returns the exact number of examples; see `resolve_durations`."""
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
        if self.unit in _TIMES:
            raise InputError(f"duration '{self}': is a time; count {', '.join(_UNITS)}")
        return self.value


def resolve_durations(
    config: T,
    *,
    batch_size: int | Pace,
    tokens_per_example: int | None = None,
    num_examples: int | Callable[[], int] | None = None,
    path: str = "--config",
) -> T:
    """Returns the config with `Steps` fields in whole steps and `Examples` fields in examples.

    Fields at any depth are resolved, also in the dataclasses of a tuple or dict. `batch_size` are
    the examples of a step, over all devices, or the pace of the run. `tokens_per_example` is None
    for models without tokens, `num_examples` where the length of an epoch is unknown; a function
    counts them, and is called only where a duration needs it.

    InputError: a text is no duration, cannot be counted in steps, or is outside a field's range.
    """
    pace = batch_size if isinstance(batch_size, Pace) else Pace(batch_size)

    def resolved(keys: schema.Keys, value: Any, hint: schema.Hint) -> Any:
        marks = schema.all_marks(hint, _Whole)
        if not marks or value is None:
            return value
        unit = marks[0].unit
        here = ".".join((path, *keys))
        amounts = () if unit == "seconds" else _UNITS
        times = (*_TIMES,) if marks[0].or_time or not amounts else ()
        try:
            duration = parse_duration(value, unit, (*amounts, *times))
            is_time = marks[0].or_time and duration.unit in _TIMES
            unit = "seconds" if is_time else unit
            if unit == "seconds":
                whole = _whole_seconds(duration)
            else:
                exact = duration.examples(pace, tokens_per_example, num_examples)
                whole = math.ceil(pace.steps(exact) if unit == "steps" else exact)
        except InputError as error:
            raise InputError(f"{here}: {error}") from error
        if against := schema.complaint(whole, hint):
            makes = "" if str(value) == str(whole) else f" makes {whole} {unit}"
            raise InputError(f"{here}={value}{makes}: {against}")
        return f"{whole} seconds" if is_time else whole

    return schema.rebuild(config, type(config), resolved)


def whole_steps(duration: int | str) -> int:
    """Returns a duration that `resolve_durations` has turned into whole steps."""
    if not isinstance(duration, int):
        raise TypeError(f"the duration {duration!r} is not resolved to steps")
    return duration


def seconds_of(duration: int | str | None) -> int | None:
    """Returns the seconds of a resolved duration that is a time; None for steps and none."""
    return int(duration.split()[0]) if isinstance(duration, str) else None


def _whole_seconds(duration: Duration) -> int:
    """Returns the seconds of a time, rounded up; InputError where it is none, or is 0."""
    if duration.unit not in _TIMES:
        raise InputError(f"'{duration}' is no time: count {', '.join(_TIMES)}")
    if not duration.value:
        raise InputError(f"'{duration}': a time must be positive")
    return math.ceil(duration.value * _TIMES[duration.unit])


def parse_duration(
    text: str | int, default_unit: str = "steps", units: Sequence[str] = _UNITS
) -> Duration:
    """Reads "<number> <unit>", the unit in singular or plural; a bare number is of the default.

    `units` are those that an error names.
    """
    words = str(text).split()
    if len(words) not in (1, 2):
        raise InputError(f"duration '{text}': write a number and a unit, such as '5000 steps'")
    number, unit = (*words, default_unit)[:2]
    plural = unit if unit.endswith("s") else f"{unit}s"
    if plural not in (*_UNITS, *_TIMES):
        hint = nearest(plural, units) or f" The units are {', '.join(units)}."
        raise InputError(f"duration '{text}': unknown unit '{unit}'.{hint}")
    try:
        value = Fraction(schema.parse_decimal(number))
    except ValueError:
        glued = re.fullmatch(r"([\d.]+)([a-z]+)", number) if len(words) == 1 else None
        hint = f"; write '{glued[1]} {glued[2]}'" if glued else ""
        raise InputError(f"duration '{text}': '{number}' is not a number{hint}") from None
    if value < 0:
        raise InputError(f"duration '{text}': must not be negative")
    return Duration(value, plural)
