"""The proof that a replay made the same steps: its numbers beside those of the run, bit for bit."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxpretrain.replay.stretch import Line, Step, Stretch
from jaxpretrain.storage.jsonl import to_numbers

ROUNDING = {"float32": 2e-5, "bfloat16": 5e-3}
"""Relative difference of a number for each step since the checkpoint that rounding explains, by the
dtype of the model: sums in another order differ at once, and then drift apart."""

DIGITS = 1.01e-3
"""Relative difference of two neighbours among the numbers of four digits, at most."""
_OF_FEW = ("attention_logit/", "activation_rms/")
"""Signals of the first example of each device, which are other examples on other devices."""
State = Literal["identical", "equal to rounding", "differs", "not recorded"]
"""The result of the comparison of a step."""


@dataclass(frozen=True)
class Verdict:
    """The comparison of a step with what the run has recorded of it."""

    step: int
    state: State
    size: float = 0.0
    """The largest relative difference of a number."""
    place: str = ""
    """The first number that differs; of equal steps, the one that differs most."""


def bound(dtype: str, num_steps: int) -> float:
    """Returns the relative difference that rounding explains so many steps after equal states."""
    return ROUNDING[dtype] * num_steps


def judge(stretch: Stretch, steps: Sequence[Step]) -> list[Verdict]:
    """Returns the comparison of each step with the run."""
    dtype = stretch.experiment.model.dtype
    return [
        compare(
            step,
            stretch.recorded.get(step.number),
            stretch.signals.get(step.number, {}),
            bound(dtype, step.number - stretch.start),
        )
        for step in steps
    ]


def compare(
    step: Step, line: Line | None, signals: Mapping[str, object], allowed: float
) -> Verdict:
    """Returns the comparison of a step with its lines of metrics and of signals.

    Metrics are recorded with all their bits, signals with four digits.
    """
    if line is None:
        return Verdict(step.number, "not recorded")
    there = {name: line[f"train/{name}"] for name in step.metrics if f"train/{name}" in line}
    sizes = differences(step.metrics, there)
    for name, exact in step.signals.items():
        if name.startswith(_OF_FEW):
            continue
        values = to_numbers(np.asarray(exact))
        if (known := signals.get(f"signals/{name}")) is not None:
            layers = zip(_listed(values), _listed(known), strict=False)
            for layer, (a, b) in enumerate(layers):
                place = f"{name}, layer {layer}" if isinstance(values, list) else name
                # Numbers that are nearly the same may be rounded to two different ones.
                sizes[place] = max(relative(a, b) - DIGITS, 0.0)
    size = max(sizes.values(), default=0.0)
    if size == 0:
        return Verdict(step.number, "identical")
    largest = max(sizes, key=lambda name: sizes[name])
    if size <= allowed:
        return Verdict(step.number, "equal to rounding", size, largest)
    first = next(name for name in sizes if sizes[name] > allowed)
    return Verdict(step.number, "differs", size, first)


def differences(here: Mapping[str, float], there: Mapping[str, float | None]) -> dict[str, float]:
    """Returns the relative differences of numbers that both have: the loss and the norm first."""
    first = [name for name in ("loss", "grad_norm") if name in there]
    names = dict.fromkeys([*first, *there])
    return {name: relative(here[name], there[name]) for name in names if name in here}


def relative(a: float | None, b: float | None) -> float:
    """Returns the relative difference of two numbers; two that are not finite are equal."""
    known = [x is not None and math.isfinite(x) for x in (a, b)]
    if a is None or b is None or not all(known):
        return math.inf if any(known) else 0.0
    return abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0


def sum_up(verdicts: Sequence[Verdict]) -> str:
    """Returns the proof of all steps in a sentence."""
    judged = [one for one in verdicts if one.state != "not recorded"]
    count = f"{len(judged)} of {len(verdicts)} steps are recorded"
    if wrong := [one for one in judged if one.state == "differs"]:
        first = wrong[0]
        return (
            f"differs: first at step {first.step:,}, in {first.place}, by {first.size:.2g} of its "
            f"value; {count}"
        )
    largest = max(judged, key=lambda one: one.size)
    if largest.size:
        return (
            f"equal to rounding: at most {largest.size:.2g} of a value ({largest.place}); {count}"
        )
    return f"identical: {count}, and these are the same bit for bit"


def _listed(values: object) -> list[float | None]:
    return values if isinstance(values, list) else [values]  # pyright: ignore[reportReturnType]
