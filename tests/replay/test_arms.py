from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.replay.arms import make_arms, tell
from jaxpretrain.replay.stretch import Stretch, open_stretch


@pytest.fixture(scope="module")
def stretch(plain: Path) -> Stretch:
    return open_stretch(plain, "7-10")


def losses(stretch: Stretch) -> dict[int, float]:
    return {step.number: step.metrics["loss"] for step in stretch.run(stretch.restore())}


def test_a_step_that_is_left_out_trains_on_the_samples_of_the_next(stretch: Stretch):
    (arm,) = make_arms(stretch, ["8"], [], [])
    assert arm.name == "--without=8"
    rows = [stretch.stages.read(stretch.data, step)["tokens"] for step in (7, 8, 9)]
    shown = [arm.stretch.stages.read(arm.stretch.data, step)["tokens"] for step in (7, 8)]
    assert np.array_equal(shown, [rows[0], rows[2]])
    original, changed = losses(stretch), losses(arm.stretch)
    assert [step for step in original if original[step] == changed[step]] == [5, 6, 7]


def test_samples_that_are_left_out_make_room_for_later_ones(stretch: Stretch):
    (arm,) = make_arms(stretch, [], ["57,60-61"], [])  # 56 to 63 are those of step 8
    rows = np.concatenate([stretch.stages.read(stretch.data, s)["tokens"] for s in (8, 9)])
    shown = arm.stretch.stages.read(arm.stretch.data, 8)["tokens"]
    assert np.array_equal(shown, rows[[0, 2, 3, 6, 7, 8, 9, 10]])


def test_changed_values_make_one_arm(stretch: Stretch):
    overrides = [("optim.schedule.peak", "0.02"), ("optim.clip_norm", "0.1")]
    (arm,) = make_arms(stretch, [], [], overrides)
    assert arm.name == "--config.optim.schedule.peak=0.02 --config.optim.clip_norm=0.1"
    original, changed = losses(stretch), losses(arm.stretch)
    assert original[5] == changed[5] and original[6] != changed[6]
    (seeded,) = make_arms(stretch, [], [], [("seed", "5")])
    other = seeded.stretch.stages.read(seeded.stretch.data, 7)["tokens"]
    assert not np.array_equal(other, stretch.stages.read(stretch.data, 7)["tokens"])


@pytest.mark.parametrize(
    ("without", "samples", "overrides", "line"),
    [
        (["4"], [], [], "--without=4: the replay has the steps 5 to 10"),
        (["11"], [], [], "--without=11: the replay has the steps 5 to 10"),
        ([], ["80"], [], "--without_examples=80: the replay has the samples 32 to 79"),
        ([], ["a"], [], "--without_examples=a: write START-END"),
        ([], [], [("optim.schedul.peak", "1")], "no such field in AdamW. Did you mean 'schedule'"),
        ([], [], [("train.batch_size", "16")], "changes the shape of the batch"),
        ([], [], [("data.seq_len", "32")], "changes the shape of the batch"),
        ([], [], [("model.d_ff", "128")], "changes the shapes of the state"),
    ],
)
def test_what_cannot_be_changed_is_one_line(stretch: Stretch, without, samples, overrides, line):
    with pytest.raises(InputError, match=line):
        make_arms(stretch, without, samples, overrides)


def test_words_say_whether_the_spike_stays_away(stretch: Stretch):
    stretch = replace(stretch, before={"train/loss": 2.0})
    original = {5: 2.0, 6: 2.0, 7: 2.0, 8: 5.0, 9: 3.0, 10: 2.1}

    def words(*late: float) -> str:
        return tell(stretch, original, dict(zip(original, (2.0, 2.0, 2.0, *late), strict=True)))

    assert words(2.0, 2.1, 2.0).startswith("the spike stays away: at most 2.100 instead of 5.000")
    assert words(3.5, 2.1, 2.0).startswith("the spike is smaller")
    assert words(4.9, 3.1, 2.0).startswith("the spike comes all the same")
    assert words(2.0, float("nan"), 2.0).startswith("the loss is not finite")
    calm = dict.fromkeys(original, 2.0)
    assert tell(stretch, calm, calm).startswith("the run has no spike here")
