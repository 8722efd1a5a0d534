"""What a sweep varies: its arms, their settings, and the runs that they take.

An arm is a named list of overrides. All arms run with the same seeds and so see the same data in
the same order, from the same initial weights where the shapes agree: differences are paired.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from itertools import product
from typing import Any

from jaxpretrain.config.errors import InputError, nearest
from jaxpretrain.config.files import load_config
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.config.serialize import to_dict

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=,+-]*")
_MAX_NAME = 100
_CHOSEN = "chosen by name"

Override = tuple[str, str]
"""The path of a field, without `--config.`, and the text of its value."""


@dataclass(frozen=True)
class Arm:
    """One side of a comparison."""

    name: str
    """A unique name that is safe as a folder's."""
    overrides: tuple[Override, ...] = ()
    """The settings beyond those that all arms share."""


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep, with its settings and its folder."""

    arm: str
    tuned: tuple[Override, ...]
    """The point of the nuisance settings."""
    seed: int
    overrides: tuple[Override, ...]
    """All overrides of the config, the seed's too; choices of classes come before their fields."""
    folder: str
    """The folder below that of the sweep: `ARM/seedN` or `ARM/TUNED/seedN`."""


@dataclass(frozen=True)
class Sweep:
    """Arms of one config, which run with the same seeds."""

    config: str
    """The config, as `--config` takes it."""
    shared: tuple[Override, ...]
    """The overrides of all arms."""
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...] = ()
    control: str = ""
    """The name of the arm that others are compared with."""
    control_reason: str = ""
    """The reason why that arm is the control, in words."""
    tune: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The values of each nuisance setting by its path; each arm is judged at its own best ones."""

    @cached_property
    def points(self) -> tuple[tuple[Override, ...], ...]:
        """The points of the nuisance settings; one without settings where there are none."""
        return tuple(combinations(self.tune))

    @cached_property
    def base(self) -> Any:
        """The config with the settings that all arms share, its durations as written."""
        return self.configured(())

    def runs(self) -> tuple[SweepRun, ...]:
        """Returns all runs, seed by seed, so that whole comparisons are there early."""
        return tuple(
            SweepRun(
                arm.name, point, seed, self._all(arm, point, seed), self._folder(arm, point, seed)
            )
            for seed in self.seeds
            for arm in self.arms
            for point in self.points
        )

    def experiment(self, run: SweepRun) -> Any:
        """Returns the config of a run, its durations as written."""
        return apply_overrides(self._loaded, run.overrides)

    def configured(self, overrides: Iterable[Override]) -> Any:
        """Returns the config with the shared settings and some others."""
        return apply_overrides(self._loaded, classes_first((*self.shared, *overrides)))

    def point_name(self, point: Iterable[Override]) -> str:
        """Returns the name of a point of the nuisance settings: `peak=3e-3`; "" without any."""
        return arm_name("", point, short_names(list(self.tune)))

    @cached_property
    def _loaded(self) -> Any:
        return load_config(self.config)

    def _all(self, arm: Arm, point: Sequence[Override], seed: int) -> tuple[Override, ...]:
        return classes_first((*self.shared, *arm.overrides, *point, ("seed", str(seed))))

    def _folder(self, arm: Arm, point: Sequence[Override], seed: int) -> str:
        return "/".join(filter(None, (arm.name, self.point_name(point), f"seed{seed}")))


def classes_first(overrides: Iterable[Override]) -> tuple[Override, ...]:
    """Returns overrides with the outer fields first: a class is chosen before its fields are set.

    Among fields of the same depth the order stays, so that later values win.
    """
    return tuple(sorted(overrides, key=lambda override: override[0].count(".")))


def combinations(values: Mapping[str, Sequence[str]]) -> Iterator[tuple[Override, ...]]:
    """Yields each combination of the values of some fields."""
    for texts in product(*values.values()):
        yield tuple(zip(values, texts, strict=True))


def with_changes(
    sweep: Sweep,
    *,
    shared: Iterable[Override] = (),
    seeds: int | None = None,
    control: str | None = None,
) -> Sweep:
    """Returns a sweep with more shared settings, another number of seeds or control, checked.

    Raises:
      InputError: there are too few seeds, two arms are the same, no arm has the control's name, or
        an override is wrong.
    """
    sweep = replace(sweep, shared=(*sweep.shared, *shared))
    number = len(sweep.seeds) if seeds is None else seeds
    least = 3 if sweep.tune else 2
    if number < least:
        why = "one chooses the best values and two judge them" if sweep.tune else "one has no noise"
        raise InputError(f"--seeds={number}: an interval takes {least} seeds or more: {why}")
    first = sweep.base.seed
    sweep = replace(sweep, seeds=tuple(range(first, first + number)))
    names = [arm.name for arm in sweep.arms]
    for name, times in Counter(names).items():
        if times > 1:
            raise InputError(f"two arms are called {name}: leave one out, or name it with --arm")
    as_it_stands = _distinct(sweep).get(_key(sweep, sweep.points[0]))
    if control is None and sweep.control_reason != _CHOSEN:
        chosen = as_it_stands or names[0]
        reason = "the config as it stands" if as_it_stands else "the first arm"
    else:
        chosen, reason = control or sweep.control, _CHOSEN
    if chosen not in names:
        hint = nearest(chosen, names) or f" The arms are {', '.join(names[:8])}."
        raise InputError(f"--control={chosen}: no such arm.{hint}")
    return replace(sweep, control=chosen, control_reason=reason)


def _key(sweep: Sweep, overrides: Iterable[Override]) -> str:
    return json.dumps(to_dict(sweep.configured(overrides)), sort_keys=True)


def _distinct(sweep: Sweep) -> dict[str, str]:
    """Returns the arm of each config, by the config; InputError where two are the same."""
    arms: dict[str, str] = {}
    words: dict[str, str] = {}
    for arm, point in product(sweep.arms, sweep.points):
        key = _key(sweep, (*arm.overrides, *point))
        here = f"{arm.name} {sweep.point_name(point)}".rstrip()
        if key in arms:
            raise InputError(f"{words[key]} and {here} are the same run: leave one out")
        arms[key], words[key] = arm.name, here
    return arms


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Returns the shortest end of each path that no other path has: `qk_norm`, `schedule.peak`."""
    short = {}
    for path in paths:
        keys, others = path.split("."), [f".{other}" for other in paths if other != path]
        ends = (".".join(keys[-count:]) for count in range(1, len(keys)))
        free = (end for end in ends if not any(other.endswith(f".{end}") for other in others))
        short[path] = next(free, path)
    return short


def arm_name(given: str, settings: Iterable[Override], short: Mapping[str, str]) -> str:
    """Returns a name for a folder, made of what is varied; InputError where the given one is none.

    `short` has the name of each path.
    """
    if given and not _NAME.fullmatch(given):
        raise InputError(f"--arm={given}: a name begins with a letter or digit; _.=,+- may follow")
    own = [f"{short[path]}={text}" for path, text in settings]
    made = re.sub(r"[^A-Za-z0-9_.=,+-]", "_", ",".join([*([given] if given else []), *own]))
    if len(made) <= _MAX_NAME:
        return made
    return f"{made[: _MAX_NAME - 9]}-{sha256(made.encode()).hexdigest()[:8]}"
