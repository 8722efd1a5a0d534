import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.optim.outliers import WINDOW, empty_history, is_outlier, record


def reference(window: list[tuple[float, float]], values: tuple[float, float], sigmas: float):
    """The rule of OLMo-core on Python lists, in float64; the 64 count the one that is judged."""
    recent = np.array(window[-128:], np.float64)
    if len(recent) + 1 < 64:
        return False
    limits = recent.mean(0) + sigmas * recent.std(0, ddof=1)
    return bool((np.array(values) > limits).any())


def judge(values: np.ndarray, sigmas: float) -> tuple[list[bool], dict[str, jax.Array]]:
    """Which of [steps, (loss, gradient norm)] are outliers, and the window at the end."""

    @jax.jit
    def step(history, loss, grad_norm):
        metrics = {"loss": loss, "grad_norm": grad_norm}
        return is_outlier(history, metrics, sigmas), record(history, metrics)

    history, found = empty_history(), []
    for loss, grad_norm in jnp.asarray(values, jnp.float32):
        outlier, history = step(history, loss, grad_norm)
        found.append(bool(outlier))
    return found, history


@pytest.mark.parametrize("sigmas", [1.0, 2.5, 6.0])
def test_outliers_are_those_of_the_rule_at_every_step(sigmas):
    """A falling loss with noise and spikes, for longer than two windows."""
    rng = np.random.default_rng(0)
    steps = np.arange(300)
    loss = 3.0 + 2.0 * np.exp(-steps / 50) + 0.1 * rng.normal(size=300)
    grad_norm = np.exp(0.2 * rng.normal(size=300))
    loss[[30, 100, 200]] += 20.0
    grad_norm[[40, 150, 250, 251]] *= 100.0
    values = np.stack([loss, grad_norm], 1).astype(np.float32)
    window = [tuple(row) for row in values]
    expected = [reference(window[:i], row, sigmas) for i, row in enumerate(window)]
    found, _ = judge(values, sigmas)
    assert found == expected
    assert expected[100] and expected[150] and expected[250] and not expected[30]


def test_one_value_above_a_known_limit_is_out_and_one_below_is_in():
    """0 and 2 in turn: mean 1, sample deviation sqrt(n / (n - 1))."""
    n = 64
    limit = 1 + 6 * math.sqrt(n / (n - 1))
    for value, expected in ((limit - 0.01, False), (limit + 0.01, True)):
        for column in (0, 1):
            values = np.ones((n + 1, 2))
            values[:n, column] = np.tile([0.0, 2.0], n // 2)
            values[n, column] = value
            found, _ = judge(values, 6.0)
            assert found == [False] * n + [expected]


def test_the_64th_step_is_the_first_that_is_judged():
    for num_steps, expected in ((63, False), (64, True)):
        values = np.ones((num_steps, 2))
        values[-1] = 1e6
        assert judge(values, 6.0)[0] == [False] * (num_steps - 1) + [expected]


def test_outliers_are_recorded_so_that_a_new_level_is_accepted():
    values = np.concatenate([np.full((WINDOW, 2), 1.0), np.full((WINDOW, 2), 5.0)])
    found, _ = judge(values, 6.0)
    assert found[WINDOW] and not any(found[WINDOW + 5 :])


def test_what_is_not_finite_stays_out_of_the_window():
    good = np.random.default_rng(0).normal(size=(70, 2)) ** 2
    bad = [[math.nan, 1.0], [1.0, math.inf], [-math.inf, math.nan]]
    _, expected = judge(good, 6.0)
    _, history = judge(np.concatenate([good[:40], bad, good[40:]]), 6.0)
    jax.tree.map(np.testing.assert_array_equal, history, expected)
