import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.config.renames import upgraded
from jaxpretrain.config.serialize import from_dict
from jaxpretrain.optim.schedules import (
    BoltOnWarmup,
    Constant,
    InverseSqrt,
    LinearTail,
    Schedule,
    Triangular,
    WarmupCosine,
    WarmupStableDecay,
)

# --- the schedules as their sources write them, in float64; s counts updates from 1 ---


def triangular(c: Triangular, s: int, total: int) -> float:
    total = total if c.horizon is None else c.horizon
    if s < c.warmup:
        return c.start + (c.peak - c.start) * s / c.warmup
    if s >= total:
        return c.end
    return c.peak + (c.end - c.peak) * (s - c.warmup) / (total - c.warmup)


def warmup_cosine(c: WarmupCosine, s: int, total: int) -> float:
    horizon = total if c.horizon is None else c.horizon
    if s < c.warmup:
        return c.start + (c.peak - c.start) * s / c.warmup
    if c.shape == "cosine_or_inverse_sqrt":
        plain = dataclasses.replace(c, shape="cosine")
        return max(warmup_cosine(plain, s, total), c.peak * math.sqrt(c.warmup / s))
    if s >= horizon:
        return c.end
    p = (s - c.warmup) / (horizon - c.warmup)
    if c.shape == "second_half":  # as OLMo-core writes it; its own peak is the whole cosine's
        whole = 2 * (c.peak - c.end)
        return c.end + whole * (1 + math.cos(math.pi * (p + 1) / 2)) / 2
    cosine = (c.peak - c.end) * (1 + math.cos(math.pi * p)) / 2
    if c.shape == "cosine_linear":
        return c.end + (1 - p) * cosine
    return c.end + cosine


def warmup_stable_decay(c: WarmupStableDecay, s: int, total: int) -> float:
    if s < c.warmup:
        return c.start + (c.peak - c.start) * s / c.warmup
    length = min(c.decay, total - c.warmup)
    if s < total - length:
        return c.peak
    return c.end if s >= total else c.peak + (c.end - c.peak) * (s - (total - length)) / length


def inverse_sqrt(c: InverseSqrt, s: int, total: int) -> float:
    if s < c.warmup:
        return c.start + (c.peak - c.start) * s / c.warmup
    return c.end + (c.peak - c.end) * (c.warmup / max(c.warmup, s)) ** c.exponent


def constant(c: Constant, s: int, total: int) -> float:
    return c.start + (c.peak - c.start) * s / c.warmup if s < c.warmup else c.peak


def linear_tail(c: LinearTail, s: int, total: int) -> float:
    reference, start = REFERENCES[type(c.inner)], total - c.length
    if s < start:
        return reference(c.inner, s, total)
    left = max(total - s, 0) / c.length
    return c.end + (reference(c.inner, start, total) - c.end) * left


def bolt_on_warmup(c: BoltOnWarmup, s: int, total: int) -> float:
    reference, end = REFERENCES[type(c.inner)], c.from_step + c.length
    if s < c.from_step:
        return 0.0
    if s < end:
        return reference(c.inner, end, total) * (s - c.from_step) / c.length
    return reference(c.inner, s, total)


REFERENCES: dict[type, Callable[[Any, int, int], float]] = {
    Triangular: triangular,
    WarmupCosine: warmup_cosine,
    WarmupStableDecay: warmup_stable_decay,
    InverseSqrt: inverse_sqrt,
    Constant: constant,
    LinearTail: linear_tail,
    BoltOnWarmup: bolt_on_warmup,
}

TOTALS_AND_SCHEDULES: list[tuple[int, Schedule]] = [
    (476_838, Triangular(start=3e-5, peak=3e-4, end=3e-5, warmup=5000)),
    (1000, WarmupStableDecay(start=0.0, peak=1.0, end=0.1, warmup=100, decay=600)),
    (1000, WarmupStableDecay(start=0.5, peak=1.0, end=0.1, warmup=0, decay=700)),
    (1000, Triangular(start=0.0, peak=1.0, end=0.1, warmup=0)),
    (739_328, WarmupCosine(start=4e-5, peak=4e-4, end=4e-5, warmup=2000)),
    (928_646, WarmupCosine(start=0.0, peak=3e-4, end=3e-5, warmup=2000, horizon=1_192_093)),
    (1000, WarmupCosine(start=0.0, peak=1.0, end=0.1, warmup=50, horizon=700)),
    (1000, WarmupCosine(start=0.7, peak=1.0, end=0.1, warmup=0)),
    (100_000, WarmupStableDecay(start=1e-5, peak=3e-4, end=1e-6, warmup=2000, decay=10_000)),
    (1000, WarmupStableDecay(peak=1.0, warmup=0, decay=1)),
    (1000, WarmupStableDecay(peak=1.0, warmup=400, decay=900)),
    (100_000, InverseSqrt(start=1e-5, peak=3e-4, warmup=2000)),
    (1000, InverseSqrt(peak=1.0, warmup=1)),
    (1000, Constant(start=0.1, peak=1.0, warmup=300)),
    (1000, Constant(start=0.1, peak=1.0, warmup=0)),
    (11_931, Triangular(start=6e-5, peak=6.1499e-5, end=0.0, warmup=0, horizon=11_921)),
    (1000, WarmupCosine(peak=1.0, end=0.1, warmup=50, shape="cosine_linear")),
    (1000, WarmupCosine(peak=1.0, end=0.1, warmup=50, shape="cosine_or_inverse_sqrt")),
    (
        1_413_814,
        WarmupCosine(
            peak=1.65e-4, end=3e-5, warmup=597_046, horizon=1_668_931, shape="second_half"
        ),
    ),
    (100_000, InverseSqrt(peak=3e-4, end=3e-5, warmup=2000, exponent=0.51)),
    (1000, LinearTail(WarmupCosine(peak=1.0, end=0.1, warmup=50), length=100)),
    (1000, LinearTail(InverseSqrt(peak=1.0, warmup=50, exponent=0.51), length=100, end=0.01)),
    (1000, BoltOnWarmup(WarmupCosine(peak=1.0, end=0.1, warmup=50), from_step=400, length=30)),
    (1000, BoltOnWarmup(Triangular(peak=1.0, end=0.1, warmup=100), from_step=20, length=30)),
]


def seams(schedule: Any, total: int) -> list[int]:
    """The steps around every change of formula, and some between."""
    if isinstance(schedule, LinearTail | BoltOnWarmup):
        ends = [total - schedule.length, getattr(schedule, "from_step", 0)]
        ends += [getattr(schedule, "from_step", 0) + schedule.length]
        return sorted({*seams(schedule.inner, total), *(s for s in ends if s >= 0)})
    starts = [schedule.warmup, total]
    starts += [getattr(schedule, "horizon", None) or total]
    starts += [total - getattr(schedule, "decay", 0)]
    around = {s + offset for s in starts for offset in (-2, -1, 0, 1, 2)}
    return sorted(s for s in around | {0, 1, total // 2, 2 * total} if s >= 0)


@pytest.mark.parametrize(("total", "schedule"), TOTALS_AND_SCHEDULES, ids=str)
def test_schedules_are_their_closed_forms_at_the_seams(total, schedule):
    steps = seams(schedule, total)
    reference = REFERENCES[type(schedule)]
    expected = [reference(schedule, s, total) for s in steps]
    ours = jax.vmap(schedule.build(total))(jnp.array(steps, jnp.int32))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6 * schedule.peak)


@pytest.mark.parametrize(
    "schedule",
    [
        Triangular(warmup=10),
        WarmupCosine(warmup=10),
        WarmupStableDecay(warmup=10, decay=5),
        InverseSqrt(warmup=10),
        Constant(warmup=10),
        LinearTail(Constant(warmup=10), length=5),
        BoltOnWarmup(Constant(warmup=10), from_step=5, length=10),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_plain_integers_serve_as_steps(schedule):
    """Logs and plots ask for the learning rate of a Python integer."""
    learning_rate = schedule.build(30)
    for s in (0, 1, 10, 30, 31):
        np.testing.assert_array_equal(learning_rate(s), learning_rate(jnp.int32(s)))
        assert np.isfinite(learning_rate(s))


PLANNED_BY_OLMO_2 = math.ceil(5e12 / 4_194_304)
OF_OLMO: dict[str, tuple[int, Schedule]] = {
    "linear": (476_838, Triangular(warmup=5000)),
    "linear_horizon": (11_931, Triangular(end=0.0, warmup=0, horizon=11_921)),
    "cosine": (739_328, WarmupCosine(start=3e-5, warmup=2000)),
    "cosine_tokens": (928_646, WarmupCosine(warmup=2000, horizon=PLANNED_BY_OLMO_2)),
    "inverse_sqrt": (100_000, InverseSqrt(start=3e-5, warmup=2000)),
    "max": (100_000, WarmupCosine(start=3e-5, warmup=2000, shape="cosine_or_inverse_sqrt")),
    "cosine_linear": (100_000, WarmupCosine(start=3e-5, warmup=5000, shape="cosine_linear")),
    "constant": (1000, Constant()),
    "constant_with_warmup": (1000, Constant(start=3e-5, warmup=300)),
    "bolt_on": (
        100_000,
        BoltOnWarmup(WarmupCosine(start=3e-5, warmup=2000), from_step=40_000, length=1000),
    ),
}


@pytest.mark.parametrize("name", OF_OLMO)
def test_learning_rates_are_those_of_the_trainer_of_olmo(name):
    """scripts/make_golden_schedules.py asked every scheduler of the package `ai2-olmo`."""
    file = Path(__file__).parents[1] / "golden/olmo_schedules.json"
    golden = json.loads(file.read_text())
    assert set(golden) == set(OF_OLMO)
    num_steps, schedule = OF_OLMO[name]
    assert golden[name]["steps"][-1] >= num_steps and len(golden[name]["steps"]) > 180
    ours = jax.vmap(schedule.build(num_steps))(jnp.array(golden[name]["steps"], jnp.int32))
    np.testing.assert_allclose(ours, golden[name]["rates"], rtol=0, atol=1e-6 * 3e-4)


@pytest.mark.parametrize(
    "schedule",
    [
        WarmupStableDecay(peak=1e-3, warmup=5, decay=41),
        WarmupStableDecay(peak=1e-3, warmup=5, decay=49),
        WarmupStableDecay(peak=1e-3, warmup=0, decay=1),
        Triangular(start=0.0, peak=1e-3, end=0.0, warmup=3),
        Triangular(start=0.0, peak=1e-3, end=0.0, warmup=3, horizon=90),
        WarmupCosine(peak=1e-3, end=0.0, warmup=3),
        WarmupCosine(peak=1e-3, end=0.0, warmup=3, horizon=90),
        WarmupCosine(peak=1e-3, end=0.0, warmup=3, shape="cosine_linear"),
        WarmupCosine(peak=1e-3, end=0.0, warmup=3, shape="second_half"),
        LinearTail(WarmupCosine(peak=1e-3, end=1e-4, warmup=3), length=41),
        LinearTail(InverseSqrt(peak=1e-3, warmup=3), length=49),
        BoltOnWarmup(WarmupStableDecay(peak=1e-3, warmup=5, decay=10), from_step=10, length=20),
    ],
    ids=str,
)
@pytest.mark.parametrize("total", [97, 490])
def test_what_ends_at_zero_ends_there_exactly_and_is_never_below(schedule: Schedule, total: int):
    """Compiled, where division by a constant is a product that is rounded."""
    steps = jnp.arange(total + 10, dtype=jnp.int32)
    rates = np.asarray(jax.jit(jax.vmap(schedule.build(total)))(steps))
    assert rates.dtype == np.float32
    assert rates.min() == 0.0 and rates.max() <= np.float32(1e-3)
    end = getattr(schedule, "horizon", None) or total
    np.testing.assert_array_equal(rates[end:], 0.0)
    assert (rates[total // 2 : end] > 0.0).all()


@pytest.mark.parametrize(
    ("s", "expected"),
    [
        (1, 3e-5 + 2.7e-4 / 5000),
        (2500, 1.65e-4),
        (5000, 3e-4),
        (240_919, 1.65e-4),  # half way down
        (476_838, 3e-5),
    ],
)
def test_olmo_7b_rises_and_falls_as_published(s, expected):
    schedule = Triangular(start=3e-5, peak=3e-4, end=3e-5, warmup=5000)
    np.testing.assert_allclose(schedule.build(476_838)(s), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("peak", "warmup", "batch_tokens", "s", "expected"),
    [(3e-4, 2000, 2**22, 928_000, 6.1499e-5), (4e-4, 4000, 2**21, 1_907_359, 7.4487e-5)],
    ids=["olmo2_7b", "olmo2_1b"],
)
def test_olmo_2_stops_its_cosine_where_its_second_stage_begins(
    peak, warmup, batch_tokens, s, expected
):
    """Both planned 5e12 tokens and stopped before."""
    horizon = math.ceil(5e12 / batch_tokens)
    schedule = WarmupCosine(peak=peak, end=peak / 10, warmup=warmup, horizon=horizon)
    np.testing.assert_allclose(schedule.build(s)(s), expected, rtol=1e-4)


@pytest.mark.parametrize(
    "schedule",
    [
        Triangular(start=0.1, peak=1.1, warmup=1000),
        WarmupCosine(start=0.1, peak=1.1, warmup=1000),
        WarmupStableDecay(start=0.1, peak=1.1, warmup=1000, decay=10),
        InverseSqrt(start=0.1, peak=1.1, warmup=1000),
        Constant(start=0.1, peak=1.1, warmup=1000),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_a_warmup_longer_than_the_run_is_cut_off(schedule):
    learning_rate = jax.vmap(schedule.build(50))(jnp.arange(51))
    np.testing.assert_allclose(learning_rate, 0.1 + np.arange(51) / 1000, rtol=1e-5)
    assert schedule.phases(50) == [("warmup", 0)]


@pytest.mark.parametrize(
    ("schedule", "num_steps", "phases"),
    [
        (Triangular(warmup=10), 100, [("warmup", 0), ("decay", 10)]),
        (
            WarmupStableDecay(warmup=10, decay=70),
            100,
            [("warmup", 0), ("stable", 10), ("decay", 30)],
        ),
        (Triangular(warmup=0), 100, [("decay", 0)]),
        (WarmupCosine(warmup=10), 100, [("warmup", 0), ("decay", 10)]),
        (
            WarmupStableDecay(warmup=10, decay=30),
            100,
            [("warmup", 0), ("stable", 10), ("decay", 70)],
        ),
        (WarmupStableDecay(warmup=10, decay=95), 100, [("warmup", 0), ("decay", 10)]),
        (WarmupStableDecay(warmup=10, decay=0), 100, [("warmup", 0), ("stable", 10)]),
        (InverseSqrt(warmup=10), 100, [("warmup", 0), ("decay", 10)]),
        (Constant(warmup=10), 100, [("warmup", 0), ("stable", 10)]),
        (Constant(), 100, [("stable", 0)]),
        (
            LinearTail(Constant(warmup=10), length=30),
            100,
            [("warmup", 0), ("stable", 10), ("tail", 70)],
        ),
        (LinearTail(Constant(warmup=80), length=30), 100, [("warmup", 0), ("tail", 70)]),
        (
            BoltOnWarmup(WarmupCosine(warmup=10), from_step=40, length=20),
            100,
            [("zero", 0), ("warmup", 40), ("decay", 60)],
        ),
        (
            BoltOnWarmup(WarmupStableDecay(warmup=10, decay=30), from_step=0, length=20),
            100,
            [("warmup", 0), ("stable", 20), ("decay", 70)],
        ),
    ],
    ids=str,
)
def test_phases_name_the_parts_of_the_run(schedule, num_steps, phases):
    assert schedule.phases(num_steps) == phases


@pytest.mark.parametrize(("total", "schedule"), TOTALS_AND_SCHEDULES, ids=str)
def test_the_slope_changes_where_a_phase_begins(total, schedule):
    """Inside stable phases the rate stands still; in others it moves."""
    learning_rate = schedule.build(total)
    phases = schedule.phases(total)
    ends = [start for _, start in phases[1:]] + [total]
    for (name, start), end in zip(phases, ends, strict=True):
        if end - start > 2 and end <= (getattr(schedule, "horizon", None) or total):
            change = abs(learning_rate(start) - learning_rate(end - 1))
            assert (change < 1e-9) == (name in ("stable", "zero")), name


def test_unresolved_durations_are_a_mistake_of_the_program():
    with pytest.raises(TypeError, match="'5000 steps' is not resolved"):
        Triangular().build(100)


# --- a field that saved configs have ---


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What holds a schedule."""

    schedule: Schedule = Triangular()


@dataclasses.dataclass(frozen=True)
class Saved:
    """The part of an experiment that holds a schedule."""

    optim: Optimizer = Optimizer()


@pytest.mark.parametrize("plateau", [0, "0 steps"])
@pytest.mark.parametrize("inside", [0, 1, 2])
def test_a_saved_schedule_without_a_plateau_is_read(plateau, inside):
    """On its own, in a tail, and in a tail in a second warm-up."""
    old = {"class": "triangular", "warmup": 7, "plateau": plateau, "horizon": 9}
    now: Schedule = Triangular(warmup=7, horizon=9)
    if inside:
        old, now = {"class": "linear_tail", "inner": old}, LinearTail(now)
    if inside == 2:
        old, now = {"class": "bolt_on_warmup", "inner": old}, BoltOnWarmup(now)
    assert from_dict(Saved, upgraded({"optim": {"schedule": old}})).optim.schedule == now


def test_the_start_of_a_second_warmup_has_another_name_and_of_a_first_the_same():
    old = {"class": "bolt_on_warmup", "inner": {"class": "constant", "start": 0.1}, "start": 5}
    found = from_dict(Saved, upgraded({"optim": {"schedule": old}})).optim.schedule
    assert found == BoltOnWarmup(Constant(start=0.1), from_step=5)
    old = {"class": "constant", "start": 0.1}
    assert from_dict(Saved, upgraded({"optim": {"schedule": old}})).optim.schedule == Constant(
        start=0.1
    )
    flags = [("optim.schedule", "bolt_on_warmup"), ("optim.schedule.start", "5")]
    with pytest.raises(InputError, match="now: optim.schedule.from_step of bolt_on_warmup"):
        apply_overrides(Saved(), flags)
    assert apply_overrides(Saved(), [("optim.schedule.start", "0.1")]).optim.schedule.start == 0.1


def test_a_plateau_is_refused_and_not_forgotten():
    old = {"optim": {"schedule": {"class": "triangular", "plateau": 5}}}
    with pytest.raises(InputError, match=r"optim\.schedule\.plateau: no such field in Triangular"):
        from_dict(Saved, upgraded(old))
    with pytest.raises(InputError, match="now: optim.schedule=warmup_stable_decay, which holds"):
        apply_overrides(Saved(), [("optim.schedule.plateau", "5")])
