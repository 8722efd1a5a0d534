"""Laws of points that follow one, and of published points, whose laws are known."""

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.laws.fits import fit_huber, fit_projected, influence, resamplings
from tests.laws.published import DATA, LAW, SHARED, chinchilla, ladder, made, needs_shared, table

NONE = np.zeros((0, 0))


def coefficients(law):
    return [law.A, law.B, law.E, law.alpha, law.beta]


@pytest.mark.parametrize("fit", [fit_huber, fit_projected])
def test_an_exact_law_is_found(fit):
    found = fit(made(), np.ones((1, 16)))
    np.testing.assert_allclose(coefficients(found.law), coefficients(LAW), rtol=1e-3)
    np.testing.assert_allclose(
        coefficients(found.resampled), [[x] for x in coefficients(LAW)], 1e-3
    )


@pytest.mark.parametrize("fit", [fit_huber, fit_projected])
def test_intervals_of_noisy_points_hold_the_law(fit):
    points = made(0.002)
    found = fit(points, resamplings(40, points))
    low, high = found.interval(lambda law: law.loss(3e8, 3e10))
    assert low < LAW.loss(3e8, 3e10) < high
    assert high / low < 1.02


def test_a_point_that_is_off_is_the_strongest():
    points = made()
    points.losses[0] *= 1.002
    moved, rest = influence(points, fit_huber(points, resamplings(1, points)), 5)
    assert moved.argmax() == 0
    assert rest.alpha == pytest.approx(LAW.alpha, abs=1e-3)


def test_resamplings_determine_a_law():
    points = made()[np.array([0, 1, 2, 4, 5, 8, 10])]
    counts = resamplings(50, points)
    assert ((counts > 0).sum(axis=1) >= 5).all()
    assert (counts.sum(axis=1) == 7).all()
    for values in (points.parameters, points.tokens):
        assert all(len(np.unique(values[row > 0])) == 3 for row in counts)
    with pytest.raises(InputError, match="only two values of tokens"):
        resamplings(1, made()[np.arange(7)])


def test_the_prediction_of_the_ladder_is_reproduced():
    points = ladder()
    found = fit_huber(points, resamplings(1, points))
    assert len(points) == 16
    published = [12.48, 33.46, 0.9343, 0.1036, 0.1620]
    np.testing.assert_allclose(coefficients(found.law), published, rtol=1e-3)
    assert found.law.loss(13_202_396_160, 5e12) == pytest.approx(2.34437, abs=5e-6)
    (large,) = table(
        DATA / "olmo_ladder.csv", "n=N_non_embedding,d=D_tokens,loss=ce5_c4_en", "model=13B"
    ).losses
    error = found.law.loss(13_202_396_160, 5_000_088_518_656) / large - 1
    assert error == pytest.approx(-0.0383, abs=2e-4)
    assert found.law.loss(6_887_575_552, 4e12) == pytest.approx(2.434, abs=1e-3)


@needs_shared
@pytest.mark.parametrize(
    ("dropped", "published", "objective"),
    [
        (5, [477.8, 2143, 1.8172, 0.3473, 0.3672], 1.01827e-3),
        (0, [495.7, 12846, 1.891, 0.3493, 0.4531], 1.826e-3),
    ],
)
def test_the_fits_of_chinchilla_are_reproduced(dropped, published, objective):
    points = chinchilla().without_highest(dropped)
    found = fit_huber(points, resamplings(1, points))
    np.testing.assert_allclose(coefficients(found.law), published, rtol=3e-4)
    assert found.objective == pytest.approx(objective, abs=1e-8 if dropped else 5e-7)


@needs_shared
@pytest.mark.slow
def test_the_bootstrap_of_chinchilla_is_reproduced():
    points = chinchilla().without_highest(5)
    found = fit_huber(points, resamplings(4000, points))
    published = {
        "A": (285, 744, 0.15),
        "B": (1042, 5810, 0.15),
        "E": (1.769, 1.871, 0.05),
        "alpha": (0.317, 0.373, 0.05),
        "beta": (0.331, 0.415, 0.05),
    }
    for name, (low, high, tolerance) in published.items():
        ends = found.interval(lambda law, name=name: getattr(law, name))
        assert ends == pytest.approx((low, high), rel=tolerance), name


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "alpha", "beta", "level"),
    [("fineweb_edu", 0.238, 0.692, 1.80), ("dclm", 0.228, 0.643, 1.92)],
)
def test_the_choice_of_points_decides_about_gemstones(name, alpha, beta, level):
    points = table(
        SHARED / f"gemstones_{name}.jsonl",
        "n=params_active_precise,d=tokens,loss=final_loss",
        "tokens>=120e9",
    )
    law = fit_huber(points, resamplings(1, points)).law
    assert [law.alpha, law.beta, law.E] == pytest.approx([alpha, beta, level], abs=5e-3)
