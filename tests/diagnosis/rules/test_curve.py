import numpy as np
import pytest

from jaxpretrain.diagnosis.intent import plan_of
from jaxpretrain.diagnosis.rules.curve import (
    divergence,
    empty_batches,
    not_finite,
    plateau,
    skipped_steps,
    spikes,
)
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.optim.schedules import Triangular

PLAN = plan_of(AdamW(schedule=Triangular(warmup=100)), 10_000, 8)
STEPS = np.arange(1, 5001)
NOISE = 0.02 * np.random.default_rng(0).normal(size=5000)


def run(history, loss, **others):
    return history(STEPS, {"train/loss": loss + NOISE}, **others)


def test_a_curve_that_stands_still_for_a_tenth_of_the_run_is_a_plateau(history):
    falling = 8 - 1.5 * np.log10(STEPS)
    flat = np.maximum(falling, falling[2999])
    assert [*plateau(run(history, falling), PLAN)] == []
    assert [*plateau(run(history, flat).until(3600), PLAN)] == []
    (finding,) = plateau(run(history, flat).until(4200), PLAN)
    assert finding.severity == "warning"
    assert abs(finding.evidence["change"]) < 4 * finding.evidence["error"]


def test_a_curve_too_noisy_to_tell_is_no_plateau(history):
    noisy = 3 + 20 * NOISE
    assert [*plateau(history(STEPS, {"train/loss": noisy}), PLAN)] == []


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("eval/sotu/loss", np.linspace(3.2, 3.0, 12)),
        ("eval/arc_easy/accuracy", np.linspace(0.3, 0.5, 12)),
    ],
)
def test_one_signal_that_improves_is_enough(history, name, values):
    steps = np.linspace(4500, 5000, 12).astype(int)
    others = {name: history(steps, {name: values})[name]}
    flat = run(history, 0 * STEPS + 3.0, **others)
    assert [*plateau(flat, PLAN)] == []
    worse = {name: history(steps, {name: values[::-1]})[name]}
    assert len([*plateau(run(history, 0 * STEPS + 3.0, **worse), PLAN)]) == 1


def test_a_loss_that_flattens_as_the_rate_ends_is_no_plateau(history):
    plan = plan_of(AdamW(schedule=Triangular(peak=1e-3, end=0.0, warmup=100)), 5000, 8)
    assert [*plateau(run(history, 0 * STEPS + 3.0), plan)] == []


def test_each_spike_is_found_with_its_height_and_its_end(history):
    loss = 3 - 1e-4 * STEPS
    loss[999] += 0.5
    loss[2000:2010] += 1.0
    first, second = spikes(run(history, loss), PLAN)
    assert (first.first, first.last, first.severity) == (1000, 1000, "info")
    assert (second.first, second.last) == (2001, 2010)
    assert second.evidence["rise"] == pytest.approx(1.0, abs=0.1)
    assert first.is_over and second.is_over
    (_, current) = spikes(run(history, loss).until(2005), PLAN)
    assert (current.severity, current.is_over) == ("warning", False)


def test_spikes_are_found_in_a_million_reports_and_only_the_tallest_are_kept(history):
    rng = np.random.default_rng(0)
    steps = np.arange(1, 1_000_001)
    loss = 3 + 0.02 * rng.normal(size=len(steps))
    loss[5_000::10_000] += 0.5 + 0.2 * np.arange(100)
    found = [*spikes(history(steps, {"train/loss": loss}), PLAN)]
    assert [spike.first for spike in found] == list(range(805_001, 1_000_000, 10_000))


def test_a_loss_that_stays_high_has_diverged_and_a_spike_has_not(history):
    loss = 3 - 1e-4 * STEPS
    spiked, diverged = loss.copy(), loss.copy()
    spiked[3000:3040] += 2
    diverged[3000:] += 2
    assert [*divergence(run(history, spiked), PLAN)] == []
    (finding,) = divergence(run(history, diverged).until(3200), PLAN)
    assert finding.severity == "error"
    assert 2900 <= finding.first <= 3001


@pytest.mark.parametrize("every", [1, 5, 10])
@pytest.mark.parametrize("num_steps", [20, 40, 100])
@pytest.mark.parametrize("growth", [0.12, 0.3])
def test_a_loss_that_rises_without_end_is_found_in_short_runs_too(
    history, num_steps, every, growth
):
    """As with a negative learning rate: it multiplies, and has no level."""
    steps = np.unique(np.r_[1, np.arange(every, num_steps + 1, every)])
    rng = np.random.default_rng(0)
    noise = 1 + 0.02 * rng.normal(size=len(steps))
    rising = history(steps, {"train/loss": 6.2 * np.exp(growth * steps) * noise})
    assert [finding.severity for finding in divergence(rising, PLAN)] == ["error"]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("noisy", [0.02, 0.1, 0.2])
def test_a_healthy_short_run_has_not_diverged_at_any_step(history, seed, noisy):
    rng = np.random.default_rng(seed)
    loss = (4.5 + 1.7 * np.exp(-STEPS[:100] / 20)) * np.exp(noisy * rng.normal(size=100))
    short = history(STEPS[:100], {"train/loss": loss})
    assert [step for step in range(1, 101) if [*divergence(short.until(step), PLAN)]] == []


def test_two_bad_batches_of_a_short_run_are_no_divergence(history):
    loss = 6.2 - 0.02 * STEPS[:60] + NOISE[:60]
    loss[[30, 31]] += 6
    short = history(STEPS[:60], {"train/loss": loss})
    assert [step for step in range(1, 61) if [*divergence(short.until(step), PLAN)]] == []


@pytest.mark.parametrize(
    ("end", "diverged"), [(12.5, True), (6.8, True), (6.3, False), (5.0, False)]
)
def test_a_loss_that_was_far_above_has_to_come_back(history, end, diverged):
    """A short run at a rate far too high: it shoots up, comes down, and ends above its start."""
    loss = np.r_[
        6.2, 6.25, 9, 40, 90, 120, 118, 110, 95, 70, 50, 35, 25, 18, *np.linspace(15, end, 6)
    ]
    loss = np.r_[loss, np.full(6, end)]
    found = [*divergence(history(STEPS[: len(loss)], {"train/loss": loss}), PLAN)]
    assert [finding.severity for finding in found] == ["error"] * diverged
    if diverged:
        assert "and has come down to" in found[0].reading


@pytest.mark.parametrize(
    ("num_empty", "severity"), [(0, None), (2, None), (10, "warning"), (60, "error")]
)
def test_batches_in_which_nothing_counts_are_found(history, num_empty, severity):
    weight = np.where(np.arange(100) < num_empty, 0.0, 124.0)
    found = [*empty_batches(history(STEPS[:100], {"train/weight": weight}), PLAN)]
    assert [finding.severity for finding in found] == ([] if severity is None else [severity])


def test_a_batch_in_which_nothing_counts_has_no_loss_and_that_is_no_finding(history):
    values = {"train/loss": [3.0, np.nan], "train/weight": [120.0, 0.0]}
    assert [*not_finite(history([1, 2], values), PLAN)] == []
    values["train/weight"] = [120.0, 120.0]
    assert [finding.last for finding in not_finite(history([1, 2], values), PLAN)] == [2]


def test_skipped_steps_are_counted_and_over_after_64_reports(history):
    skipped = np.zeros(200)
    skipped[[9, 49]] = 1
    whole = history(STEPS[:200], {"train/skipped": skipped})
    assert [*skipped_steps(whole.until(9), PLAN)] == []
    (finding,) = skipped_steps(whole.until(113), PLAN)
    assert (finding.first, finding.last, finding.is_over) == (10, 50, False)
    assert finding.evidence == {"skipped": 2, "share": 2 / 113}
    (finding,) = skipped_steps(whole.until(114), PLAN)
    assert finding.is_over
