from dataclasses import replace

import numpy as np
import pytest

from jaxpretrain.laws.analysis import analyse, describe
from jaxpretrain.laws.law import Law
from jaxpretrain.laws.points import Points
from tests.laws.published import LAW, isoflop, made


def test_the_document_has_fits_optima_and_points():
    points = made(0.001)
    document = describe(analyse(points, 20), [1e19])
    huber, projected = document["fits"]
    assert (huber["method"], projected["method"]) == ("huber", "variable_projection")
    assert huber["alpha"] == pytest.approx(LAW.alpha, abs=0.03)
    low, high = huber["intervals"]["alpha"]
    assert low <= high
    assert huber["num_points"] == 16
    (best,) = document["optimal"]
    assert best["parameters"] == pytest.approx(LAW.optimal_parameters(1e19), rel=0.3)
    assert 6 * best["parameters"] * best["tokens"] == pytest.approx(1e19)
    assert len(document["influence"]["strongest"]) == 5
    assert {row["name"] for row in document["points"]} == set(points.names)
    assert document["hash"] == points.hash


def test_parabolas_come_with_their_bias():
    document = describe(analyse(isoflop(), 5))
    found = document["fits"][2]
    assert (found["method"], found["A"], len(found["optima"])) == ("isoflop", None, 12)
    assert found["compute"]["gamma"] > 0
    assert np.isfinite(found["bias"]["parameters"])
    assert any("parabolas are biased" in line for line in document["warnings"])


def test_short_runs_above_the_law_are_doubted():
    points = made(0.0005)
    ratio = points.tokens / points.parameters
    short = ratio <= np.quantile(ratio, 0.25)
    lifted = replace(points, losses=points.losses * np.where(short, 1.03, 1))
    assert describe(analyse(points, 2))["warnings"] == []
    assert any("cooled too briefly" in line for line in describe(analyse(lifted, 2))["warnings"])


def test_a_largest_run_beside_the_law_of_the_others_is_told():
    points = made(0.0005)
    is_largest = points.flops == points.flops.max()
    lower = replace(points, losses=points.losses * np.where(is_largest, 0.97, 1))
    (line,) = (x for x in describe(analyse(lower, 2))["warnings"] if "misses the largest" in x)
    name = points.names[int(points.flops.argmax())]
    assert f"{name}, by +3." in line  # the law is 3 % above the run
    slightly = replace(points, losses=points.losses * np.where(is_largest, 0.995, 1))
    assert not any("misses" in x for x in describe(analyse(slightly, 2))["warnings"])


def test_points_without_a_law_are_doubted():
    points = made()
    random = replace(points, losses=3 + np.random.default_rng(0).normal(size=16) / 1e3)
    document = describe(analyse(random, 3))
    assert any("do not determine the terms" in line for line in document["warnings"])


def test_a_ladder_that_hardly_separates_the_terms_is_doubted():
    sizes = np.repeat([1e5, 1.6e5, 2.3e5], [4, 3, 2])
    tokens = 20 * sizes * np.array([1, 2, 4, 8, 1, 2, 4, 1, 2])
    law = Law(A=400.0, B=6400.0, E=2.2, alpha=0.5, beta=0.6)
    noise = np.exp(0.02 * np.random.default_rng(1).normal(size=9))
    points = Points(sizes, tokens, law.loss(sizes, tokens) * noise, ("",) * 9, "loss")
    found = analyse(points, 40)
    low, high = describe(found)["fits"][0]["intervals"]["alpha"]
    assert high > 3 * low
    (doubt,) = (line for line in describe(found)["warnings"] if "the terms" in line)
    assert f"95 % of alpha lie from {low:.3f}"[:25] in doubt


def test_optima_have_a_power_law_and_no_law():
    document = describe(analyse(made(), 5, are_optima=True))
    assert [fit["method"] for fit in document["fits"]] == ["isoflop"]
    assert document["optimal"] == []


def test_points_that_count_twice_are_said():
    points = made(0.001)[np.array([*range(16), 5, 2])]
    lines = [x for x in describe(analyse(points, 2))["warnings"] if "count twice" in x]
    assert len(lines) == 1
    assert lines[0].startswith("2 points have the numbers of others, such as run 5,")
