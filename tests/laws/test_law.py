import numpy as np
import pytest

from jaxpretrain.laws.law import FLOPS
from tests.laws.published import LAW


@pytest.mark.parametrize("flops", [1e18, 1e22])
def test_no_other_size_of_a_budget_has_a_smaller_loss(flops):
    best = LAW.optimal_parameters(flops)
    sizes = best * np.geomspace(0.2, 5, 1001)
    losses = LAW.loss(sizes, flops / (FLOPS * sizes))
    assert losses.argmin() == 500
    assert LAW.optimal_loss(flops) == losses[500]


def test_exponents_are_those_of_the_closed_forms():
    flops = np.array([1e18, 1e20])
    sizes, losses = LAW.optimal_parameters(flops), LAW.optimal_loss(flops) - LAW.E
    found = LAW.exponents
    assert np.log10(sizes[1] / sizes[0]) / 2 == pytest.approx(found["parameters"])
    assert np.log10(losses[0] / losses[1]) / 2 == pytest.approx(found["loss"])
    assert found["parameters"] + found["tokens"] == pytest.approx(1)
