from typing import get_args

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.diagnosis.findings import Name
from jaxpretrain.monitor.config import Monitor


def test_what_ends_a_run_is_named_as_findings_are():
    chosen = apply_overrides(Monitor(), [("stop_on", "plateau,divergence")])
    assert chosen.stop_on == ("plateau", "divergence")
    assert set(chosen.stop_on) < set(get_args(Name))
    with pytest.raises(InputError, match="Did you mean 'plateau'"):
        apply_overrides(Monitor(), [("stop_on", "divergence,plateu")])
