from dataclasses import dataclass, field

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.config.renames import upgraded
from jaxpretrain.config.serialize import from_dict
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
