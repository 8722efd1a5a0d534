from dataclasses import replace

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.laws.fits import resamplings
from jaxpretrain.laws.tasks import Sigmoid, fit_tasks
from tests.laws.published import LAW, ladder, made

TASKS = {
    name: (f"bpb5_{name}_val", f"acc5_{name}_val_rc_5shot_len_norm")
    for name in ("hellaswag", "piqa")
}


def test_both_steps_of_a_made_task_are_found():
    sigmoid = Sigmoid(0.25, 0.9, 4.0, 2.5)
    points = made()
    points = replace(points, tasks={"made": (points.losses, sigmoid.accuracy(points.losses))})
    law = fit_tasks(points, resamplings(2, points))["made"]
    found = law.predict(3e9, 3e11)
    assert found["bits_per_byte"] == pytest.approx(LAW.loss(3e9, 3e11), rel=1e-4)
    assert found["accuracy"] == pytest.approx(sigmoid.accuracy(LAW.loss(3e9, 3e11)), rel=1e-3)
    assert found["accuracy_low"] <= found["accuracy"] + 1e-6


def test_intervals_of_tasks_are_those_of_a_new_run():
    noise, sigmoid = np.random.default_rng(0).normal(size=(2, 16)), Sigmoid(0.25, 0.9, 4.0, 2.5)
    points = made(0.002)
    shares = sigmoid.accuracy(points.losses) + 0.02 * noise[0]
    points = replace(points, tasks={"made": (points.losses, shares)})
    law = fit_tasks(points, resamplings(40, points))["made"]
    found = law.predict(1e8, 1e10)  # among the points, where the sigmoid itself is well known
    assert 0.05 < found["accuracy_high"] - found["accuracy_low"] < 0.15
    low, high = (np.log(found[f"bits_per_byte_{end}"]) for end in ("low", "high"))
    assert 0.004 < high - low < 0.015


def test_published_tasks_at_13b_are_predicted_about_as_published():
    points = ladder(**TASKS)
    laws = fit_tasks(points, resamplings(1, points))
    measured = {"hellaswag": 0.8342, "piqa": 0.8294}
    for name, law in laws.items():
        found = law.predict(13_202_396_160, 5_000_088_518_656)
        # The paper fits the sigmoid to checkpoints of all lengths, and errs by 2.5 % and 1.1 %.
        assert found["accuracy"] == pytest.approx(measured[name], rel=0.04)


@pytest.mark.parametrize("share", [np.nan, 50.0, -0.1])
def test_a_point_without_an_accuracy_is_named(share):
    points = made()
    shares = np.where(np.arange(16) == 3, share, 0.5)
    with pytest.raises(InputError, match=f"task made: run 3 has .* an accuracy of {share:g}; bits"):
        fit_tasks(replace(points, tasks={"made": (points.losses, shares)}), np.ones((1, 16)))
