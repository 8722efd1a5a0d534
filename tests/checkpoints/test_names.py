from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.checkpoints.names import checksums, from_named, kind, part_checksum, to_named


class Moments(NamedTuple):
    mu: Any
    count: Any


@jax.tree_util.register_dataclass
@dataclass
class State:
    params: Any
    optimizer: Any


def _state() -> State:
    layers = {"0": {"kernel": np.ones((2, 3))}, "1": {"kernel": np.zeros(4)}}
    return State({"blocks": layers}, {"adam": Moments([np.arange(3)], np.int32(7)), "clip": ()})


def test_names_are_the_ways_through_dicts_named_tuples_lists_and_dataclasses():
    assert sorted(to_named(_state())) == [
        "optimizer/adam/count",
        "optimizer/adam/mu/0",
        "params/blocks/0/kernel",
        "params/blocks/1/kernel",
    ]


def test_a_tree_is_filled_with_the_arrays_of_its_names():
    named = {name: np.full_like(leaf, 5) for name, leaf in to_named(_state()).items()}
    filled = from_named(_state(), named | {"more": np.ones(1)})
    assert jax.tree.structure(filled) == jax.tree.structure(_state())
    assert all((leaf == 5).all() for leaf in jax.tree.leaves(filled))


def test_the_kind_of_an_array_is_what_json_can_hold():
    expected = {"shape": [2, 3], "dtype": "bfloat16"}
    assert kind(jnp.zeros((2, 3), jnp.bfloat16)) == expected
    assert kind(jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint32", "uint8"])
def test_the_parts_of_an_array_have_its_checksum_together(dtype):
    """On devices and on the host, with a wrap at 2^32, and every bit counts."""
    values = np.random.default_rng(0).normal(scale=1e3, size=(64, 9)).astype(jnp.dtype(dtype))
    whole = int(checksums({"x": jnp.asarray(values)})["x"])
    assert sum(part_checksum(part) for part in np.split(values, 8)) % 2**32 == whole
    bits = values.view(f"uint{8 * values.itemsize}").copy()
    assert int(bits.astype(object).sum()) % 2**32 == whole
    bits[3, 4] ^= 1
    changed = bits.view(values.dtype)
    assert int(checksums({"x": jnp.asarray(changed)})["x"]) != whole
