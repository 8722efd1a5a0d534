import math

import numpy as np
import pytest

from jaxpretrain.replay.proof import Verdict, bound, compare, relative, sum_up
from jaxpretrain.replay.stretch import Step

STEP = Step(
    7,
    {"weight": 3.0, "grad_norm": 0.5, "loss": 2.0},
    {"grad_norm/blocks": np.array([1.23456, 2.0])},
    None,
)
LINE = {"train/loss": 2.0, "train/grad_norm": 0.5, "train/weight": 3.0, "perf/mfu": 0.3}
SIGNALS = {"step": 7, "signals/grad_norm/blocks": [1.235, 2.0]}


def test_a_step_is_identical_where_all_that_is_recorded_has_the_same_bits():
    assert compare(STEP, LINE, SIGNALS, 1e-6) == Verdict(7, "identical")
    assert compare(STEP, LINE, {}, 1e-6).state == "identical"
    assert compare(STEP, None, SIGNALS, 1e-6) == Verdict(7, "not recorded")


def test_a_difference_has_its_size_and_its_first_place():
    near = compare(STEP, LINE | {"train/grad_norm": 0.5 * (1 - 1e-7)}, SIGNALS, 1e-6)
    assert (near.state, near.place) == ("equal to rounding", "grad_norm")
    assert near.size == pytest.approx(1e-7)
    far = compare(STEP, LINE | {"train/weight": 4.0, "train/loss": 2.1}, SIGNALS, 1e-6)
    assert (far.state, far.place, far.size) == ("differs", "loss", 0.25)
    layer = compare(STEP, LINE, {"signals/grad_norm/blocks": [1.235, 2.1]}, 1e-6)
    assert (layer.state, layer.place) == ("differs", "grad_norm/blocks, layer 1")


def test_numbers_that_are_not_finite_are_equal_to_one_another_alone():
    assert relative(math.nan, None) == 0.0 == relative(math.inf, math.nan)
    assert relative(1.0, None) == math.inf == relative(math.nan, 1.0)
    assert relative(0.0, 0.0) == 0.0


def test_the_sentence_names_the_first_step_that_differs():
    same, unknown = Verdict(1, "identical"), Verdict(2, "not recorded")
    assert sum_up([same, unknown]).startswith("identical: 1 of 2 steps are recorded")
    wrong = [Verdict(3, "differs", 0.5, "loss"), Verdict(4, "differs", 0.9, "weight")]
    line = sum_up([same, *wrong])
    assert line.startswith("differs: first at step 3, in loss, by 0.5 of its value")


def test_rounding_grows_with_the_steps_and_with_shorter_numbers():
    assert bound("float32", 10) == 10 * bound("float32", 1) < bound("bfloat16", 1)
