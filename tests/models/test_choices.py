from typing import get_args

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.models.choices import (
    AttentionChoice,
    AttentionKernel,
    RematChoice,
    RematPolicy,
    require_divisible,
    require_policy,
)


def test_a_policy_stays_as_it_is_and_auto_is_refused():
    assert [require_policy(policy) for policy in get_args(RematPolicy)] == [*get_args(RematPolicy)]
    with pytest.raises(InputError, match="model.remat=auto: jaxpretrain.main and .plan choose"):
        require_policy("auto")


def test_configs_may_name_every_kernel_and_policy_or_leave_it_open():
    assert {*get_args(RematChoice)} == {"auto", *get_args(RematPolicy)}
    inner = {"xla_blocks_float32"}  # blocks in another dtype: what auto means on CPUs
    assert {*get_args(AttentionChoice)} == {"auto", *get_args(AttentionKernel)} - inner


def test_the_first_remainder_is_told():
    require_divisible((8, 4, "a by b"), (0, 1, "c by d"))
    with pytest.raises(InputError, match="^cannot divide c by d: 7 / 2$"):
        require_divisible((8, 4, "a by b"), (7, 2, "c by d"), (7, 3, "e by f"))
    with pytest.raises(InputError, match="4 / 0"):
        require_divisible((4, 0, "a by b"))
