import math
from dataclasses import dataclass, field
from fractions import Fraction

import pytest

from jaxpretrain.config.durations import (
    Duration,
    Examples,
    Pace,
    Seconds,
    Steps,
    StepsOrTime,
    parse_duration,
    resolve_durations,
    seconds_of,
)
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import validate


def steps_of(
    text: str,
    batch_size: int,
    tokens_per_example: int | None = None,
    num_examples: int | None = None,
) -> int:
    pace = Pace(batch_size)
    exact = parse_duration(text).examples(pace, tokens_per_example, num_examples)
    return math.ceil(pace.steps(exact))


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("5000 steps", 5000, "steps"),
        ("1 step", 1, "steps"),
        ("5000", 5000, "steps"),
        (5000, 5000, "steps"),
        ("0", 0, "steps"),
        ("1_000 steps", 1000, "steps"),
        ("2e12 tokens", 2 * 10**12, "tokens"),
        ("300e6 images", 300 * 10**6, "images"),
        ("1 sequence", 1, "sequences"),
        ("  2  epochs ", 2, "epochs"),
        ("0.1 epochs", Fraction(1, 10), "epochs"),
    ],
)
def test_durations_are_read_exactly(text, value, unit):
    assert parse_duration(text) == Duration(Fraction(value), unit)


def test_tokens_of_a_published_run_become_its_steps():
    assert steps_of("2e12 tokens", batch_size=2048, tokens_per_example=2048) == 476_838


@pytest.mark.parametrize(
    ("text", "num_steps"),
    [
        ("7 steps", 7),
        ("0 steps", 0),
        ("64 images", 8),
        ("65 examples", 9),
        ("63 sequences", 8),
        ("80 tokens", 1),
        ("81 tokens", 2),
        ("2 epochs", 25),
        ("0.5 epochs", 7),
        ("0 epochs", 0),
    ],
)
def test_steps_are_rounded_up(text, num_steps):
    assert steps_of(text, batch_size=8, tokens_per_example=10, num_examples=100) == num_steps


def test_rounding_is_exact_where_floats_are_not():
    # 0.1 as a float is a little more than a tenth, and would become 11 steps.
    assert steps_of("0.1 epochs", batch_size=1, num_examples=100) == 10
    assert steps_of("1000000000000000000001 images", batch_size=10) == 10**20 + 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5 stps", "unknown unit 'stps'. Did you mean 'steps'?"),
        ("5 furlongs", "The units are steps, tokens, examples, images, sequences, epochs."),
        ("5 s", "unknown unit 's'."),
        ("five steps", "'five' is not a number"),
        ("nan steps", "'nan' is not a number"),
        ("inf steps", "'inf' is not a number"),
        ("1e999999999 steps", "'1e999999999' is not a number"),
        ("1/2 epochs", "'1/2' is not a number"),
        ("20minutes", "'20minutes' is not a number; write '20 minutes'"),
        ("-1 steps", "must not be negative"),
        ("", "write a number and a unit"),
        ("5 more steps", "write a number and a unit"),
    ],
)
def test_bad_durations_are_refused(text, message):
    with pytest.raises(InputError) as error:
        parse_duration(text)
    assert str(error.value).startswith(f"duration '{text}': ")
    assert message in str(error.value)


def test_epochs_need_the_number_of_examples():
    with pytest.raises(InputError, match=r"duration '2 epochs': .*set data\.num_examples"):
        steps_of("2 epochs", batch_size=8)


def test_tokens_need_a_model_with_tokens():
    with pytest.raises(InputError, match=r"duration '2e\+12 tokens': this model has no tokens"):
        steps_of("2e12 tokens", batch_size=8)


@dataclass(frozen=True)
class Rise:
    warmup: Steps = "80 tokens"
    horizon: Steps | None = None
    note: str = "5 steps"


@dataclass(frozen=True)
class Fall:
    decay: Steps = "0.5 epochs"


@dataclass(frozen=True)
class Optimizer:
    schedule: Rise | Fall = Rise()
    epsilon: float = 1e-8


@dataclass(frozen=True)
class Run:
    optim: Optimizer = Optimizer()
    duration: Steps = "65 examples"
    every: Steps | None = "2 epochs"
    workers: int | None = 3


SIZES = {"batch_size": 8, "tokens_per_example": 10, "num_examples": 100}


def test_durations_resolve_at_any_depth_and_nothing_else_changes():
    resolved = resolve_durations(Run(), **SIZES)
    assert resolved == Run(optim=Optimizer(Rise(warmup=1)), duration=9, every=25)
    assert resolved.optim.schedule == Rise(warmup=1, horizon=None, note="5 steps")


def test_optional_durations_resolve_when_they_are_there():
    config = Run(optim=Optimizer(Rise(horizon="81 tokens")), every=None)
    resolved = resolve_durations(config, **SIZES)
    assert resolved.every is None
    assert resolved.optim.schedule == Rise(warmup=1, horizon=2)


def test_the_chosen_class_of_a_union_is_resolved():
    assert resolve_durations(Run(optim=Optimizer(Fall())), **SIZES).optim.schedule == Fall(decay=7)


@dataclass(frozen=True)
class Change:
    at: Examples = "2 steps"
    before: Steps | None = None


@dataclass(frozen=True)
class Changes:
    listed: tuple[Change, ...] = (Change(), Change(at="81 tokens", before="9 examples"))
    named: dict[str, Change] = field(default_factory=lambda: {"a": Change(at="1 epoch")})


def test_durations_in_tuples_and_dicts_resolve():
    assert resolve_durations(Changes(), **SIZES) == Changes(
        listed=(Change(at=16), Change(at=9, before=2)), named={"a": Change(at=100)}
    )


def test_positions_are_examples_and_resolving_them_twice_changes_nothing():
    resolved = resolve_durations(Change(at=17), **SIZES)
    assert resolved == resolve_durations(resolved, **SIZES) == Change(at=17)


@pytest.mark.parametrize(
    ("config", "place"),
    [
        (Changes(listed=(Change(), Change(at="x steps"))), "listed.1.at"),
        (Changes(named={"a": Change(before="-1 steps")}), "named.a.before"),
    ],
)
def test_an_unresolvable_duration_in_a_container_is_named_by_its_path(config, place):
    with pytest.raises(InputError, match=rf"^--config\.{place}: duration"):
        resolve_durations(config, **SIZES)


def test_resolving_twice_changes_nothing():
    resolved = resolve_durations(Run(), **SIZES)
    assert resolve_durations(resolved, batch_size=1) == resolved


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            Run(optim=Optimizer(Rise(horizon="5 stps"))),
            "--config.optim.schedule.horizon: duration '5 stps': unknown unit 'stps'.",
        ),
        (Run(duration="-1 steps"), "--config.duration: duration '-1 steps': must not be negative"),
        (Run(every="1 epochs"), "--config.every: duration '1 epochs': the length of an epoch"),
        (Run(), "--config.optim.schedule.warmup: duration '80 tokens': this model has no tokens"),
    ],
    ids=str,
)
def test_an_unresolvable_duration_is_named_by_its_path(config, message):
    with pytest.raises(InputError) as error:
        tokens = 10 if config != Run() else None
        resolve_durations(config, batch_size=8, tokens_per_example=tokens)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@dataclass(frozen=True)
class _Longest:
    steps: Steps = 1
    examples: Examples = 1


@pytest.mark.parametrize(
    ("name", "most"), [("steps", 2_147_483_647), ("examples", 9_223_372_036_854_775_807)]
)
def test_durations_end_where_devices_and_arrays_stop_counting(name: str, most: int):
    validate(_Longest(**{name: most}))
    with pytest.raises(InputError, match=name):
        validate(_Longest(**{name: most + 1}))


@dataclass(frozen=True)
class Timed:
    """Fields that hold times, or may."""

    limit: Seconds = "5 minutes"
    every: StepsOrTime = "7 steps"
    warmup: Steps = "1 step"


def test_a_time_is_whole_seconds_and_stays_a_text_where_steps_may_stand():
    resolved = resolve_durations(Timed(limit="1.5 minutes", every="0.5 hours"), batch_size=8)
    assert resolved == Timed(limit=90, every="1800 seconds", warmup=1)
    assert (seconds_of(resolved.every), seconds_of(7), seconds_of(None)) == (1800, None, None)
    assert resolve_durations(resolved, batch_size=8) == resolved
    assert resolve_durations(Timed(limit=10), batch_size=8).every == 7


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Timed(limit="3 steps"), "--config.limit: '3 steps' is no time: count seconds, minutes"),
        (Timed(every="0 minutes"), "--config.every: '0 minutes': a time must be positive"),
        (Timed(every="20 minuts"), "unknown unit 'minuts'. Did you mean 'minutes'?"),
        (
            Timed(every="20 parsecs"),
            "The units are steps, tokens, examples, images, sequences, epochs, seconds, minutes, "
            "hours, days.",
        ),
        (Timed(limit="20 parsecs"), "The units are seconds, minutes, hours, days."),
        (Timed(every="1e30 days"), "seconds: must be from 0 to 2147483647"),
        (
            Timed(warmup="3 minutes"),
            "--config.warmup: duration '3 minutes': is a time; count steps",
        ),
        (Timed(limit="3 parsecs"), "--config.limit: duration '3 parsecs': unknown unit 'parsecs'"),
    ],
)
def test_a_time_in_the_wrong_place_is_one_line(config: Timed, message: str):
    with pytest.raises(InputError, match=message):
        resolve_durations(config, batch_size=8)
