from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.laws.isoflop import (
    bias,
    budgets,
    fit_compute,
    fit_isoflop,
    fit_parabolas,
    join_optima,
    power,
)
from jaxpretrain.laws.law import FLOPS
from jaxpretrain.laws.points import Points, read_table
from tests.laws.published import DATA, LAW, isoflop, made

PUBLISHED = [0.835, 0.706, 0.602, 0.571, 0.497, 0.864, 0.699, 0.603, 0.574, 0.518]


def on_budgets(width=1.0):
    flops = np.repeat([1e18, 1e19, 1e20, 1e21], 7)
    sizes = LAW.optimal_parameters(flops) * np.tile(np.geomspace(1 / 8, 8, 7) ** width, 4)
    tokens = flops / (FLOPS * sizes)
    return Points(sizes, tokens, LAW.loss(sizes, tokens), ("",) * 28, "loss")


def test_narrow_parabolas_find_the_optimum_and_wide_ones_are_biased():
    points = on_budgets(0.2)
    found = fit_isoflop(points, 10)
    assert found is not None
    assert found.exponent == pytest.approx(LAW.exponents["parameters"], abs=1e-3)
    assert abs(bias(points, LAW, found)[1]) < 0.01
    wide = on_budgets()
    broad = fit_isoflop(wide, 1)
    assert broad is not None
    assert abs(bias(wide, LAW, broad)[1]) > 10 * abs(bias(points, LAW, found)[1])


def test_points_of_the_same_budget_are_together():
    assert [len(rows) for rows in budgets(isoflop())] == [8, 9, 10, 15, 14, 13, 12, 10, 9, 8, 7, 6]
    assert fit_isoflop(made(), 1) is None


def test_a_budget_without_a_minimum_inside_has_no_parabola():
    points = on_budgets()
    cut = points[points.parameters < LAW.optimal_parameters(points.flops)]
    assert fit_parabolas(cut) == []


@pytest.mark.filterwarnings("error")
def test_one_size_with_many_seeds_has_no_parabola():
    points = on_budgets()
    seeds = points[np.repeat(np.arange(2, 28, 7), 6)]
    assert fit_parabolas(seeds) == []
    assert fit_isoflop(seeds, 3) is None


def test_the_exponents_of_ten_settings_are_reproduced():
    rows = read_table(DATA / "porian_optima.csv")
    keys = ("dataset", "hparams", "warmup", "decay", "param_count")
    found = []
    for _, group in groupby(rows, key=lambda row: [row[key] for key in keys]):
        pairs = [(float(row["flops"]), float(row["n_opt"] or "nan")) for row in group]
        found.append(power(*np.array(pairs).T)[1])
    np.testing.assert_allclose(found, PUBLISHED, atol=0.01)


def test_parabolas_through_published_points_come_near_the_published_exponent():
    found = fit_isoflop(isoflop(), 50)
    assert found is not None
    assert len(found.parabolas) == 12
    low, high = found.interval
    assert low < found.exponent < high
    assert found.exponent == pytest.approx(0.497, abs=0.03)


def test_optima_are_joined_as_they_are():
    points = on_budgets()[np.arange(3, 28, 7)]
    assert join_optima(points, 20).exponent == pytest.approx(LAW.exponents["parameters"])
    with pytest.raises(InputError, match="3 or more"):
        join_optima(points[np.arange(2)], 1)
    one = replace(points, tokens=1e19 / points.parameters)
    with pytest.raises(InputError, match="all points have 6e\\+19 FLOPs; take more budgets"):
        join_optima(one, 1)


def test_the_loss_over_compute_is_that_of_the_law():
    flops = np.geomspace(1e18, 1e22, 6)
    found = fit_compute(flops, LAW.optimal_loss(flops))
    assert found is not None
    assert found["E"] == pytest.approx(LAW.E, abs=0.01)
    assert found["gamma"] == pytest.approx(LAW.exponents["loss"], abs=1e-3)
    assert fit_compute(flops[:3], flops[:3]) is None
