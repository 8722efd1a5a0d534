"""The parsing of sweeps: from flags, or from a file with a function get_sweep()."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, TypeVar

from jaxpretrain.config import schema
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.files import function_in, locate
from jaxpretrain.sweeps.arms import (
    Arm,
    Override,
    Sweep,
    arm_name,
    combinations,
    short_names,
    with_changes,
)
from jaxpretrain.sweeps.values import fill, parse_range, split_values

T = TypeVar("T")

DEFAULT_SEEDS = 3
"""The number of seeds of a sweep that names none."""
_FLAGS = ("--grid.", "--range.", "--tune.", "--config.", "--arm=")


def make_sweep(
    config: str,
    *,
    grid: Mapping[str, Sequence[object]] | None = None,
    arms: Mapping[str, Mapping[str, object]] | None = None,
    ranges: Mapping[str, str] | None = None,
    random: int = 0,
    tune: Mapping[str, Sequence[object]] | None = None,
    shared: Mapping[str, object] | Iterable[Override] = (),
    seeds: int = DEFAULT_SEEDS,
    control: str | None = None,
) -> Sweep:
    """Returns a sweep, checked: each arm is a config, and no two arms are the same.

    Args:
      config: a packaged config, or the path of a file.
      grid: the values of each field, by its path; there is an arm for each combination.
      arms: the settings of each arm, by its name; with a grid, for each of its combinations.
      ranges: `LOW..HIGH` of fields, from which `random` points are taken.
      random: the number of these points.
      tune: the values of nuisance settings: each arm is compared at its own best ones.
      shared: settings of all arms.
      seeds: the number of seeds, which are the seed of the config and the numbers after it.
      control: the name of the arm that the others are compared with.

    Raises:
      InputError: a path or a value is wrong, nothing is varied, or two arms are the same.
    """
    lists, tuned = _texts("grid", grid), _texts("tune", tune, least=2)
    spans = {
        path: _read(f"--range.{path}", text, parse_range) for path, text in (ranges or {}).items()
    }
    if bool(spans) != bool(random) or random < 0:
        raise InputError("--random=N and --range.PATH=LOW..HIGH go together; N is 1 or more")
    named = {name: _overrides(settings) for name, settings in (arms or {"": {}}).items()}
    paths = [*{path for own in named.values() for path, _ in own}, *lists, *spans, *tuned]
    _check_paths(paths)
    sweep = Sweep(config, _overrides(shared), (), tune=tuned)
    base = sweep.base
    whole = frozenset(path for path in spans if _is_whole(base, path))
    drawn = fill(spans, random, base.seed, whole) if spans else [()]
    short = short_names(paths)
    built = tuple(
        Arm(arm_name(name, (*point, *spot), short), (*own, *point, *spot))
        for (name, own), point, spot in product(named.items(), combinations(lists), drawn)
    )
    if len(built) < 2:
        raise InputError(
            "nothing is varied: name two values or more, such as "
            "--grid.optim.schedule.peak=3e-3,6e-3, or two arms with --arm=NAME"
        )
    try:
        return with_changes(replace(sweep, arms=built), seeds=seeds, control=control)
    except InputError as error:
        flags = {"grid": lists, "range": spans, "tune": tuned}
        raise _as_written(error, flags) from error


def split_sweep(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the items of a command line that `parse_sweep` does not read, and those it reads."""
    rest = [item for item in argv if not item.startswith(_FLAGS)]
    return rest, [item for item in argv if item.startswith(_FLAGS)]


def parse_sweep(
    config: str,
    items: Iterable[str],
    *,
    random: int = 0,
    seeds: int = DEFAULT_SEEDS,
    control: str | None = None,
) -> Sweep:
    """Returns the sweep that a command line asks for, as `make_sweep` does.

    Args:
      config: the config, as `--config` takes it.
      items: `--grid.PATH=A,B`, `--range.PATH=LOW..HIGH`, `--tune.PATH=A,B`, `--config.PATH=VALUE`
        and `--arm=NAME`, which takes the `--config.` items up to the next one.
      random: the number of points that are taken from the ranges.
      seeds: the number of seeds.
      control: the name of the control.
    """
    found: dict[str, dict[str, str]] = {"grid": {}, "range": {}, "tune": {}}
    shared: list[Override] = []
    arms: dict[str, list[Override]] = {}
    place = shared
    for item in items:
        flag, equals, text = item.partition("=")
        kind, _, path = flag.removeprefix("--").partition(".")
        if not (text if kind == "arm" else path and equals):
            raise InputError(f"{item} is not complete: see --help")
        if kind == "arm":
            if text in arms:
                raise InputError(f"{item}: there are two arms of that name")
            place = arms[text] = []
        elif kind == "config":
            place.append((path, text))
        elif path in found[kind]:
            raise InputError(f"{flag} is given twice: write all values in one list")
        else:
            found[kind][path] = text
    return make_sweep(
        config,
        grid=found["grid"],
        arms={name: dict(own) for name, own in arms.items()},
        ranges=found["range"],
        random=random,
        tune=found["tune"],
        shared=shared,
        seeds=seeds,
        control=control,
    )


def load_sweep(spec: str) -> Sweep:
    """Returns the sweep of get_sweep() in a file, or of one in `configs/sweeps/` by its name.

    Raises:
      InputError: there is no such file, or it gives no sweep.
    """
    file = locate(spec, "sweep")
    get_sweep = function_in(file, "get_sweep")
    try:
        sweep = None if get_sweep is None else get_sweep()
    except (InputError, ValueError) as error:
        raise InputError(f"{file}: {error}") from error
    if not isinstance(sweep, Sweep):
        raise InputError(f"{file}: needs a function get_sweep() that returns make_sweep(...)")
    return sweep


def _overrides(settings: Mapping[str, object] | Iterable[Override]) -> tuple[Override, ...]:
    return tuple((path, schema.value_text(value)) for path, value in dict(settings).items())


def _texts(
    kind: str, values: Mapping[str, Sequence[object]] | None, least: int = 1
) -> dict[str, tuple[str, ...]]:
    """Returns the texts of lists of values, which may be one text with commas."""
    texts = {}
    for path, listed in (values or {}).items():
        flag = f"--{kind}.{path}"
        split = _read(flag, listed, split_values) if isinstance(listed, str) else listed
        texts[path] = tuple(map(schema.value_text, split))
        if len(texts[path]) < least:
            raise InputError(f"{flag}: name {least} values or more")
    return texts


def _read(flag: str, text: str, reader: Callable[[str], T]) -> T:
    try:
        return reader(text)
    except ValueError as error:
        raise InputError(f"{flag}={text}: {error}") from error


def _check_paths(paths: Sequence[str]) -> None:
    """Raises InputError for a path that is varied in two ways, or that is the seed."""
    for path, times in Counter(paths).items():
        if times > 1:
            raise InputError(f"{path} is varied in two ways at once: vary it in one of them")
    if "seed" in paths:
        raise InputError("seed: all arms have the same seeds; --seeds=N says how many")


def _is_whole(config: Any, path: str) -> bool:
    """Returns true where the field takes whole numbers and no others."""
    hints = [hint for keys, _, hint in schema.walk(config, type(config)) if ".".join(keys) == path]
    return any(int in schema.members(hint) and float not in schema.members(hint) for hint in hints)


def _as_written(error: InputError, flags: Mapping[str, Iterable[str]]) -> InputError:
    """Returns the error about a field with the flag that was given in place of `--config`."""
    head = re.match(r"--config\.([\w.]+)", str(error))
    for kind, paths in flags.items():
        if head and any(f"{path}.".startswith(f"{head[1]}.") for path in paths):
            return InputError(f"--{kind}{str(error).removeprefix('--config')}")
    return error
