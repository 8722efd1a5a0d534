"""The same numbers from transformers and from OLMo's own trainer, kept and live."""

from functools import cache

import pytest

from scripts import make_golden_olmo
from tests.parity.models import Reference

_compute = cache(make_golden_olmo.compute)


@pytest.fixture(params=["kept", pytest.param("live", marks=pytest.mark.slow)])
def reference(request: pytest.FixtureRequest) -> Reference:
    """What the other program computes: as tests/golden has it, and as it does right now."""
    if request.param == "kept":
        return make_golden_olmo.read
    for program in ("torch", "transformers", "olmo"):
        pytest.importorskip(program)
    return _compute
