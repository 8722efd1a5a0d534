from typing import Any

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.interop.hf_config import read_config
from jaxpretrain.interop.hf_rope import write_yarn
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.olmo.rotary import Rope, Yarn
from tests.interop.test_hf_config import SIZES, YARN


def _read(architecture: str = "Olmo3ForCausalLM", **keys: Any) -> Decoder:
    return read_config({"architectures": [architecture], **SIZES, **keys}, "config.json")[1]


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_theta": 5e5, "rope_scaling": YARN},
        {"rope_scaling": YARN | {"type": "yarn", "mscale": None}},
        {"rope_parameters": {"full_attention": YARN}},
        {"rope_parameters": {"full_attention": {"rope_theta": 5e5, **YARN}}},
        {
            "rope_parameters": {
                "full_attention": {"rope_theta": 5e5, **YARN},
                "sliding_attention": {"rope_theta": 5e5, "rope_type": "default"},
            }
        },
        {
            "rope_theta": 5e5,
            "rope_scaling": YARN,
            "rope_parameters": {"full_attention": {"rope_theta": 5e5, **YARN}},
        },
    ],
)
def test_rotary_positions_are_read_as_transformers_4_and_5_write_them(keys: dict[str, Any]):
    assert _read(**keys).rope == Yarn(5e5, 4.0, 128, 32.0, 1.0)


def test_rotary_positions_of_kinds_of_layers_that_are_not_there_do_not_matter():
    rope = {"full_attention": {"rope_theta": 1e6, **YARN}, "sliding_attention": {"rope_theta": 1e4}}
    found = _read(rope_parameters=rope, layer_types=["full_attention"] * 8)
    assert found.rope == Yarn(1e6, 4.0, 128)
    found = _read(rope_parameters=rope, layer_types=["sliding_attention"] * 8)
    assert found.rope == Rope(1e4)


def test_the_context_before_yarn_is_the_model_s_where_none_is_named():
    yarn = {"rope_type": "yarn", "factor": 2.0}
    found = _read("LlamaForCausalLM", rope_scaling=yarn, max_position_embeddings=96)
    assert found.rope == Yarn(1e4, 2.0, 96)


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_scaling": YARN, "rope_parameters": {"rope_theta": 5e5, **YARN}},
        {"rope_parameters": {"full_attention": YARN}},
        {"layer_types": ["full_attention"] * 8},
        {"sliding_window": 8},
        {"attention_bias": True},
    ],
)
def test_a_class_without_kinds_of_layers_has_one_set_of_rotary_positions(keys: dict[str, Any]):
    with pytest.raises(InputError, match=r"^config.json: .*(differ|not supported|not understood)"):
        _read("LlamaForCausalLM", **keys)


@pytest.mark.parametrize("value", [True, "1", float("nan"), float("inf"), [1.0]])
def test_only_finite_numbers_are_numbers(value: object):
    with pytest.raises(InputError, match="^config.json: rope_theta(: expected| is .*positive$)"):
        _read(rope_theta=value)
    assert _read("LlamaForCausalLM", rope_theta=3).rope == Rope(3.0)


def test_only_yarn_is_written_as_scaling():
    assert write_yarn(Rope(5e5)) == {}
    written = write_yarn(Yarn(5e5, 4.0, 128, 16.0, 2.0))
    assert _read("LlamaForCausalLM", rope_theta=5e5, rope_scaling=written).rope == Yarn(
        5e5, 4.0, 128, 16.0, 2.0
    )
