import json
from dataclasses import replace
from typing import Any

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.interop.hf_config import read_config, write_config
from jaxpretrain.models.decoder import Decoder
from jaxpretrain.models.olmo import VARIANTS
from jaxpretrain.models.rotary import Yarn

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
TRAINED_HOW = (
    "vocab_size",
    "init",
    "norm_rounding",
    "residual_dtype",
    "loss_denominator",
    "z_loss",
)


def _read(architecture: str = "Olmo3ForCausalLM", **keys: Any) -> Decoder:
    return read_config({"architectures": [architecture], **SIZES, **keys}, "config.json")[1]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_published_model_can_be_written_and_read_again(name: str):
    model = VARIANTS[name]
    _, config = write_config(model, 4096)
    _, found, seq_len = read_config(json.loads(json.dumps(config)), "config.json")
    kept = {field: getattr(model, field) for field in TRAINED_HOW}
    assert replace(found, **kept) == model
    assert seq_len == 4096


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("olmo_1b", "OlmoForCausalLM"),
        ("olmo_7b_0724", "OlmoForCausalLM"),
        ("olmo2_32b", "Olmo2ForCausalLM"),
        ("olmo3_7b", "Olmo3ForCausalLM"),
        ("olmo_60m", "LlamaForCausalLM"),
    ],
)
def test_the_class_that_computes_the_same_is_chosen(name: str, architecture: str):
    assert write_config(VARIANTS[name], 2048)[1]["architectures"] == [architecture]


def test_a_model_that_no_class_computes_is_refused_by_its_fields():
    model = Decoder(norm="layernorm", norm_position="after", qk_norm=True)
    with pytest.raises(InputError, match="model.norm=layernorm, which is rmsnorm in Olmo"):
        write_config(model, 64)
    windows = replace(VARIANTS["olmo3_7b"], windows=(8, 16))
    with pytest.raises(InputError, match=r"windows of one size, not model.windows=\(8, 16\)"):
        write_config(windows, 64)


@pytest.mark.parametrize(
    ("keys", "windows"),
    [
        ({}, (4096, 4096, 4096, None)),
        ({"layer_types": ["full_attention"] * 8}, (None,)),
        ({"layer_types": ["sliding_attention", "full_attention"] * 4}, (4096, None)),
        (
            {"layer_types": ["sliding_attention"] * 7 + ["full_attention"], "sliding_window": 9},
            (9,) * 7 + (None,),
        ),
    ],
)
def test_windows_are_the_shortest_pattern(keys: dict[str, Any], windows: tuple):
    assert _read(**keys).windows == windows


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_theta": 1e6, "rope_scaling": YARN},
        {"rope_parameters": {"full_attention": {"rope_theta": 1e6, **YARN}}},
        {
            "rope_parameters": {
                "full_attention": {"rope_theta": 1e6, **YARN},
                "sliding_attention": {"rope_theta": 1e6, "rope_type": "default"},
            }
        },
    ],
)
def test_rotary_positions_are_read_as_transformers_4_and_5_write_them(keys: dict[str, Any]):
    model = _read(**keys)
    assert model.rope_theta == 1e6
    assert model.yarn == Yarn(4.0, 128, 32.0, 1.0)


def test_what_a_config_leaves_out_is_the_class_s_default():
    assert _read().rope_theta == 500000.0
    assert _read("Olmo2ForCausalLM").rope_theta == 10000.0
    assert _read("OlmoForCausalLM").norm == "layernorm"
    assert _read("Olmo2ForCausalLM", num_key_value_heads=4).num_kv_heads is None
    assert _read("Olmo2ForCausalLM", num_key_value_heads=2).num_kv_heads == 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "the architecture is GPT2LMHeadModel"),
        ({"architectures": ["OLMoForCausalLM"]}, "Did you mean 'OlmoForCausalLM'"),
        ({"architectures": []}, "the architecture is not named"),
        ({"hidden_size": "32"}, "hidden_size is 32, not a number"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu is not supported, only silu"),
        ({"head_dim": 16}, "head_dim=16 is not supported, only 8"),
        ({"layer_types": ["full_attention"] * 7}, "layer_types must be 8 times"),
        ({"layer_types": ["linear_attention"] * 8}, "layer_types must be"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_type=llama3 is not supported"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "YaRN parameters are not complete: 'factor'"),
        ({"rope_scaling": YARN | {"attention_factor": 1.0}}, "attention_factor=1.0 is not"),
        ({"rope_scaling": YARN | {"truncate": False}}, "truncate=False is not supported"),
        (
            {
                "rope_parameters": {
                    "full_attention": {"rope_theta": 1e6},
                    "sliding_attention": {"rope_theta": 1e4},
                }
            },
            "another rope_theta",
        ),
    ],
)
def test_what_a_decoder_is_not_is_refused(keys: dict[str, Any], message: str):
    with pytest.raises(InputError, match=f"config.json: .*{message}"):
        _read(**keys)
