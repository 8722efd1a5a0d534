import math

import pytest

from jaxpretrain.evals.nats import bits_per_byte, perplexity


def test_a_loss_in_other_units():
    assert perplexity(math.log(7)) == pytest.approx(7)
    assert bits_per_byte(math.log(2) * 24, 8) == pytest.approx(3)
    assert bits_per_byte(5.0, 0) is None


def test_a_diverged_loss_has_a_finite_perplexity():
    assert math.isfinite(perplexity(1e6)) and math.isnan(perplexity(math.nan))
