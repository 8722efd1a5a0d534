import math

import pytest

from jaxpretrain.evals.scoring.nats import bits_per_byte


def test_a_loss_in_other_units():
    assert bits_per_byte(math.log(2) * 24, 8) == pytest.approx(3)
    assert bits_per_byte(5.0, 0) is None
