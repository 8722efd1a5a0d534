from dataclasses import dataclass, field

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.config.renames import upgraded
from jaxpretrain.config.serialize import from_dict
from jaxpretrain.diagnosis.rules import NAMES
from jaxpretrain.monitor.config import Monitor


@dataclass(frozen=True)
class Config:
    """The group of an experiment that this test needs."""

    monitor: Monitor = field(default_factory=Monitor)


def test_which_attention_counts_is_no_choice_any_more():
    """Saved configs lose the field; on the command line, the error says where both figures are."""
    old = {"monitor": {"every": "5 steps", "mfu_attention": "full"}}
    assert from_dict(Config, upgraded(old)) == Config(Monitor(every="5 steps"))
    with pytest.raises(InputError, match=r"monitor.mfu_attention .* perf/mfu_full_attention"):
        apply_overrides(Config(), [("monitor.mfu_attention", "full")])


def test_what_ends_a_run_is_named_as_findings_are():
    chosen = apply_overrides(Monitor(), [("stop_on", "plateau,divergence")])
    assert chosen.stop_on == ("plateau", "divergence")
    assert set(chosen.stop_on) < set(NAMES)
    assert apply_overrides(Monitor(), [("stop_on", ",".join(NAMES))]).stop_on == NAMES
    with pytest.raises(InputError, match="Did you mean 'plateau'"):
        apply_overrides(Monitor(), [("stop_on", "divergence,plateu")])
