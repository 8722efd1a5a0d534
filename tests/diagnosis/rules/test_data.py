import numpy as np
import pytest

from jaxpretrain.diagnosis.intent import TrainingPlan
from jaxpretrain.diagnosis.rules.data import epochs, repetition

PLAN = TrainingPlan(1000, [], lambda s: 0 * np.asarray(s) + 1e-3)
STEPS = np.arange(1, 1001)


@pytest.mark.parametrize(("end", "severity"), [(0.9, None), (2.5, "info"), (6.0, "warning")])
def test_a_source_is_repeated_from_its_second_epoch_on(history, end, severity):
    run = history(STEPS, {"train/wiki/epochs": end * STEPS / 1000})
    found = [*epochs(run, PLAN)]
    assert [finding.severity for finding in found] == ([severity] if severity else [])
    assert all(f.subject == "wiki" and f.first == int(1000 / end) + 1 for f in found)


def test_data_without_sources_is_repeated_as_a_whole(history):
    run = history(STEPS, {"train/epochs": 6.0 * STEPS / 1000})
    (finding,) = epochs(run, PLAN)
    assert (finding.title, finding.severity) == ("Repeated data", "warning")
    assert finding.reading == "The data is being read for the 6th time (6.00 epochs)."


@pytest.mark.parametrize(
    ("end", "nth"), [(1.01, "2nd"), (2.5, "3rd"), (3.2, "4th"), (10.5, "11th"), (20.1, "21st")]
)
def test_times_are_ordinals(history, end, nth):
    (finding,) = epochs(history(STEPS, {"train/epochs": end * STEPS / 1000}), PLAN)
    assert f"for the {nth} time" in finding.reading


def test_images_are_meant_to_come_often(history):
    values = {"train/epochs": 60.0 * STEPS / 1000, "train/images": STEPS}
    assert [*epochs(history(STEPS, values), PLAN)] == []


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("seed", range(3))
def test_losses_that_come_again_are_found_with_their_period(history, every, seed):
    rng = np.random.default_rng(seed)
    batches = rng.normal(size=70)
    steps = every * STEPS
    curve = 3 + 2 / np.sqrt(STEPS)
    again = curve + 0.05 * batches[STEPS % 70] + 0.05 * rng.normal(size=1000)
    (finding,) = repetition(history(steps, {"train/loss": again}), PLAN)
    assert finding.evidence["period"] == 70 * every
    fresh = curve + 0.07 * rng.normal(size=1000)
    assert [*repetition(history(steps, {"train/loss": fresh}), PLAN)] == []


def test_repetition_is_seen_across_steps_that_are_reported_off_the_grid(history):
    """The first step, the last and one where a session begins."""
    rng = np.random.default_rng(0)
    batches = rng.normal(size=70)
    steps = np.sort(np.r_[1, 10 * STEPS, 5_003, 10_004])
    again = 3 + 0.05 * batches[steps // 10 % 70] + 0.02 * rng.normal(size=len(steps))
    (finding,) = repetition(history(steps, {"train/loss": again}), PLAN)
    assert finding.evidence["period"] == 700


def test_a_slow_wave_is_no_repetition(history):
    rng = np.random.default_rng(0)
    wave = 3 + 0.1 * np.sin(STEPS / 10) + 0.02 * rng.normal(size=1000)
    assert [*repetition(history(STEPS, {"train/loss": wave}), PLAN)] == []
