import numpy as np
import pytest

from jaxpretrain.laws.huber import DELTA, _derivatives, _objective, minimize_huber
from tests.laws.published import LAW, made

THETA = np.array([[*np.log([LAW.A, LAW.B, LAW.E]), LAW.alpha, LAW.beta]])


def test_derivatives_are_those_of_the_objective():
    points, theta = made(2 * DELTA).logs, THETA + 1e-4
    weights = np.random.default_rng(1).uniform(0.5, 2, (1, points.shape[1]))
    gradient, hessian = _derivatives(theta, points, weights)
    for place in range(5):
        step = 1e-6 * np.eye(5)[place]
        ends = [_objective(theta + sign * step, points, weights)[0] for sign in (1, -1)]
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(gradient[0, place], rel=1e-4, abs=1e-9)
        slopes = [_derivatives(theta + sign * step, points, weights)[0][0] for sign in (1, -1)]
        np.testing.assert_allclose(
            (slopes[0] - slopes[1]) / 2e-6, hessian[0, place], rtol=1e-4, atol=1e-7
        )


def test_an_exact_law_is_found_to_the_last_digits_from_afar():
    found, value = minimize_huber(THETA * 1.2, made().logs, np.ones(16))
    np.testing.assert_allclose(found, THETA, rtol=1e-6)
    assert value[0] < 1e-20


def test_fits_at_once_are_the_fits_one_by_one():
    points = made(0.01).logs
    counts = np.random.default_rng(0).integers(1, 3, (3, 16))
    together, values = minimize_huber(np.tile(THETA, (3, 1)), points, counts)
    for row, counted in enumerate(counts):
        alone, value = minimize_huber(THETA, points, counted)
        np.testing.assert_allclose(together[row], alone[0], rtol=1e-6)
        assert values[row] == pytest.approx(value[0], rel=1e-9)
    assert len(minimize_huber(THETA[:0], points, counts[:0])[0]) == 0


def test_a_point_counted_twice_is_two_points():
    points = made(0.01).logs
    twice, _ = minimize_huber(THETA, np.hstack([points, points[:, :1]]), np.ones(17))
    weights = np.ones(16)
    weights[0] = 2
    counted, _ = minimize_huber(THETA, points, weights)
    np.testing.assert_allclose(counted, twice, rtol=1e-6)
