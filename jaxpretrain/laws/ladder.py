"""Ladders: small runs of several sizes and lengths, as the arms of a sweep.

The config takes the place on the ladder as its argument, `CONFIG:SIZE-MULTIPLEx`, with the name of
a rule behind it where one is asked for, and sets batch, learning rate and warm-up by it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxpretrain.config import schema
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.files import load_config
from jaxpretrain.config.serialize import diff, to_dict
from jaxpretrain.laws.law import FLOPS
from jaxpretrain.laws.sizes import configured, size_of
from jaxpretrain.sweeps.arms import Arm, Override, Sweep, classes_first
from jaxpretrain.train.experiment import Resolved

_DIGITS = 4
"""The significant digits of a multiple that follows from a budget."""


def make_ladder(
    config: str,
    sizes: Sequence[str],
    *,
    multiples: Sequence[float] = (1.0,),
    budgets: Sequence[float] = (),
    rule: str = "",
    shared: Iterable[Override] = (),
) -> Sweep:
    """Returns the sweep with a run for each size at each length, one seed each.

    Args:
      config: the config, without an argument.
      sizes: the sizes, as the config names them.
      multiples: the lengths, relative to the config's own at that size.
      budgets: FLOPs, 6 N D; where there are any, each size runs at each of them instead.
      rule: the name of the rule of batch and learning rate; "" takes the config's own.
      shared: settings of all runs; they win over those of the rule.

    Raises:
      InputError: the config knows no such size or rule, two runs are the same, or one is too short.
    """
    given = tuple(shared)
    places = [
        (size, multiple)
        for size in sizes
        for multiple in (_multiples(config, size, budgets, given) if budgets else multiples)
    ]
    names = [f"{size}-{_plain(multiple)}x" for size, multiple in places]
    twins = [name for name in names if names.count(name) > 1]
    if twins or len(names) < 2:
        what = f"{twins[0]} is there twice" if twins else "one run is no ladder"
        raise InputError(f"{what}: name different sizes, and different multiples or budgets")
    specs = [f"{config}:{name}{'-' * bool(rule)}{rule}" for name in names]
    base = to_dict(load_config(specs[0]))
    fixed = {path for path, _ in given}
    arms = tuple(
        Arm(name, _overrides(base, to_dict(load_config(spec)), fixed))
        for name, spec in zip(names, specs, strict=True)
    )
    sweep = Sweep(specs[0], given, arms, control=names[0], control_reason="the first of the ladder")
    for name, spec in zip(names, specs, strict=True):
        _require_cooling(name, configured(spec, classes_first(given)))
    return replace(sweep, seeds=(sweep.base.seed,))


def parse_numbers(flag: str, text: str | None) -> list[float]:
    """Returns the positive numbers in a flag's list such as `1e15,3e15`; none without a text.

    Raises:
      InputError: one is not a positive number.
    """
    try:
        numbers = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        numbers = [math.nan]
    if not all(0 < number < math.inf for number in numbers):
        raise InputError(f"{flag}={text}: write positive numbers with commas between them")
    return numbers


def _plain(number: float) -> str:
    """Returns a number as configs write it, with six digits and never with an exponent."""
    return np.format_float_positional(float(f"{number:.6g}"), trim="-")


def _require_cooling(name: str, experiment: Resolved) -> None:
    """Raises InputError where a run ends in its warm-up: its loss would be no point of a law."""
    steps = experiment.timeline.num_steps
    if [phase for phase, _ in experiment.optim.schedule.phases(steps)] == ["warmup"]:
        raise InputError(
            f"{name}: ends in its warm-up, after {steps:,} steps; take larger --multiples or "
            "--budgets, or smaller sizes"
        )


def _multiples(
    config: str, size: str, budgets: Sequence[float], shared: tuple[Override, ...]
) -> list[float]:
    """Returns the lengths of a size at some budgets, relative to the config's own length."""
    once = size_of(configured(f"{config}:{size}", classes_first(shared)))
    whole = FLOPS * once.parameters * once.tokens
    return [float(f"{budget / whole:.{_DIGITS}g}") for budget in budgets]


def _overrides(
    base: Mapping[str, Any], config: Mapping[str, Any], fixed: set[str]
) -> tuple[Override, ...]:
    """Returns the settings that make a config of another one."""
    changes = [(path, value) for path, _, value in diff(base, config) if path not in fixed]
    return tuple((path, _text(value)) for path, value in changes)


def _text(value: object) -> str:
    return schema.value_text(tuple(value) if isinstance(value, list) else value)
