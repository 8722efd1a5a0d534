import json
from pathlib import Path
from typing import Any

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.interop.olmo_config import read_decoder
from jaxpretrain.interop.olmo_keys import OlmoKeys
from jaxpretrain.models.norms import LayerNorm
from jaxpretrain.models.olmo.initial_weights import Normal

REQUIRED: dict[str, Any] = {
    "rope": True,
    "include_bias": False,
    "layer_norm_with_affine": False,
}


@pytest.fixture
def keys(tmp_path: Path):
    """Settings of the group `model`, beside those that every model here has -> the file's keys."""

    def read(**settings: Any) -> OlmoKeys:
        file = tmp_path / "config.yaml"
        file.write_text(json.dumps({"model": REQUIRED | settings}))
        return OlmoKeys(file)

    return read


def test_what_is_not_given_is_olmos_default(keys):
    model = read_decoder(keys())
    sizes = (model.d_model, model.num_layers, model.num_heads, model.num_kv_heads, model.d_ff)
    assert sizes == (768, 12, 12, None, 4 * 768 // 2)
    assert (model.vocab_size, model.embedding_rows, model.tied_head) == (50257, 50304, True)
    assert (model.norm, model.norm_position) == (LayerNorm(1e-5), "before")
    assert model.init == Normal(0.02, None)


@pytest.mark.parametrize(
    ("init", "given", "cutoff"),
    [
        ("normal", None, None),
        ("normal", 2.5, 2.5),
        ("normal", 0, None),
        ("mitchell", None, 3.0),
        ("mitchell", 2, 2.0),
        ("mitchell", 0, 3.0),
        ("full_megatron", None, 3.0),
        ("full_megatron", 4.0, 4.0),
    ],
)
def test_only_normal_draws_are_not_cut_by_default(keys, init, given, cutoff):
    """`init_cutoff_factor or 3.0` in `reset_parameters` of olmo/model.py."""
    assert read_decoder(keys(init_fn=init, init_cutoff_factor=given)).init.cutoff == cutoff


@pytest.mark.parametrize(
    ("num_kv_heads", "is_shared", "expected"),
    [
        (None, None, None),
        (None, False, None),
        (None, True, 1),
        (4, None, 4),
        (12, None, None),
        (12, False, None),
        (1, True, 1),
        (1, None, 1),
    ],
)
def test_grouped_heads_are_olmos_effective_ones(keys, num_kv_heads, is_shared, expected):
    found = keys(n_kv_heads=num_kv_heads, multi_query_attention=is_shared)
    assert read_decoder(found).num_kv_heads == expected
    found.check()


@pytest.mark.parametrize(("num_kv_heads", "is_shared"), [(4, False), (4, True), (12, True)])
def test_two_numbers_of_heads_are_a_contradiction(keys, num_kv_heads, is_shared):
    found = keys(n_kv_heads=num_kv_heads, multi_query_attention=is_shared)
    read_decoder(found)
    with pytest.raises(InputError, match=f"n_kv_heads={num_kv_heads} beside .*={is_shared}"):
        found.check()


@pytest.mark.parametrize("size", ["d_model", "n_heads", "n_layers", "vocab_size"])
@pytest.mark.parametrize("value", [0, -4, 2.5])
def test_sizes_are_positive_whole_numbers(keys, size, value):
    with pytest.raises(InputError, match=f"model.{size}={value} is not a positive whole number"):
        read_decoder(keys(**{size: value}))


def test_rounded_rotary_positions_are_refused(keys):
    found = keys(rope_full_precision=False)
    read_decoder(found)
    with pytest.raises(InputError, match="model.rope_full_precision=False"):
        found.check()
