import importlib
import inspect
import json
import re
from dataclasses import replace
from typing import Any

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.interop.hf_config import (
    ARCHITECTURES,
    read_config,
    read_token_ids,
    write_config,
)
from jaxpretrain.models.layers import LayerNorm, RMSNorm
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.olmo.rotary import Rope
from jaxpretrain.models.olmo.variants import OLMO_SIZES

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
    "residual_dtype",
    "reduce_dtype",
    "loss_denominator",
    "z_loss",
)


def _read(architecture: str = "Olmo3ForCausalLM", **keys: Any) -> Decoder:
    return read_config({"architectures": [architecture], **SIZES, **keys}, "config.json")[1]


def _rounding(model: Decoder) -> dict[str, Any]:
    return {"rounding": model.norm.rounding} if isinstance(model.norm, RMSNorm) else {}


@pytest.mark.parametrize("name", OLMO_SIZES)
def test_every_published_model_can_be_written_and_read_again(name: str):
    model = OLMO_SIZES[name]
    _, config = write_config(model, 4096)
    _, found, seq_len = read_config(json.loads(json.dumps(config)), "config.json")
    kept = {field: getattr(model, field) for field in TRAINED_HOW}
    kept["norm"] = replace(found.norm, **_rounding(model))
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
    assert write_config(OLMO_SIZES[name], 2048)[1]["architectures"] == [architecture]


def test_a_model_that_no_class_computes_is_refused_by_its_fields():
    model = Decoder(norm=LayerNorm(), norm_position="after", qk_norm=True)
    with pytest.raises(InputError, match="model.norm=layer_norm, which is rms_norm in Olmo"):
        write_config(model, 64)
    windows = replace(OLMO_SIZES["olmo3_7b"], windows=(8, 16))
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
    ("architecture", "theta", "epsilon", "token_ids"),
    [
        ("LlamaForCausalLM", 10000.0, 1e-6, (1, 2, None)),
        ("OlmoForCausalLM", 10000.0, 1e-5, (None, None, 1)),
        ("Olmo2ForCausalLM", 10000.0, 1e-5, (None, None, 1)),
        ("Olmo3ForCausalLM", 500000.0, 1e-5, (None, None, 1)),
    ],
)
def test_what_a_config_leaves_out_is_the_class_s_default(
    architecture: str, theta: float, epsilon: float, token_ids: tuple
):
    model = _read(architecture)
    assert (model.rope, model.norm.epsilon) == (Rope(theta), epsilon)
    assert (model.clip_qkv, model.tied_head, model.num_kv_heads) == (None, False, None)
    assert read_config({"architectures": [architecture], **SIZES}, "config.json")[2] == 2048
    found = read_token_ids(SIZES, ARCHITECTURES[architecture])
    assert tuple(found.values()) == token_ids  # 50279, OLMo's end, is not below 64
    large = read_token_ids(SIZES | {"vocab_size": 50304}, ARCHITECTURES["OlmoForCausalLM"])
    assert large["eos_token_id"] == 50279


def test_as_many_keys_and_values_as_heads_are_not_grouped():
    assert _read("Olmo2ForCausalLM", num_key_value_heads=4).num_kv_heads is None
    assert _read("Olmo2ForCausalLM", num_key_value_heads=2).num_kv_heads == 2


def test_keys_that_do_not_change_the_model_are_passed_over():
    inert = {
        "_name_or_path": "x",
        "transformers_version": "5.23.0",
        "torch_dtype": "bfloat16",
        "attention_dropout": 0.1,
        "initializer_range": 0.01,
        "pretraining_tp": 2,
        "use_cache": True,
        "temperature": 0.7,
        "mlp_bias": False,
        "sliding_window": None,
        "quantization_config": {},
        "model_type": "olmo2",
    }
    assert _read("Olmo2ForCausalLM", **inert) == _read("Olmo2ForCausalLM")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "the architecture is GPT2LMHeadModel"),
        ({"architectures": ["OLMoForCausalLM"]}, "Did you mean 'OlmoForCausalLM'"),
        ({"architectures": []}, "the architecture is not named"),
        ({"hidden_size": "32"}, "hidden_size: expected .*, got '32'"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu is not supported, only silu"),
        ({"head_dim": 16}, "head_dim=16 is not supported, only 8"),
        ({"layer_types": ["full_attention"] * 7}, "layer_types must be 8 times"),
        ({"layer_types": ["linear_attention"] * 8}, "layer_types must be"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_type=llama3 is not supported"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type=linear is not supported"),
        ({"rope_scaling": {"type": "dynamic", "rope_type": "yarn"}}, "type=dynamic and rope_type"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "YaRN parameters are not complete: 'factor'"),
        ({"rope_scaling": YARN | {"factor": "4"}}, "rope_scaling.factor: expected"),
        ({"rope_scaling": YARN | {"attention_factor": 1.0}}, "attention_factor=1.0 is not"),
        ({"rope_scaling": YARN | {"attention_factor": 0.0}}, "attention_factor=0.0 is not"),
        ({"rope_scaling": YARN | {"truncate": False}}, "truncate=False is not supported"),
        ({"rope_scaling": YARN | {"mscale": 0.7}}, "mscale=0.7 is not supported"),
        ({"rope_scaling": YARN | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5 is"),
        ({"rope_scaling": YARN | {"original_max_position_embeddings": 6}}, "at least 2 pi"),
        ({"rope_scaling": YARN | {"beta_slow": 64}}, "beta_slow=64.0: must be"),
        ({"rope_scaling": {"rope_type": "default", "factor": 2.0}}, "factor=2.0 is not supported"),
        ({"rope_scaling": [4.0]}, "rope_scaling: expected"),
        ({"rope_theta": "1e4"}, "rope_theta: expected"),
        ({"rope_theta": -1.0}, "rope_theta is -1, but must be positive"),
        ({"rms_norm_eps": None}, "rms_norm_eps: expected"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings: expected"),
        ({"model_type": "mistral"}, "model_type=mistral contradicts the architecture Olmo3"),
        ({"sliding_window": None}, "sliding_window is null, but layer_types has sliding"),
        ({"sliding_window": 0}, "sliding_window is 0, not a number"),
        ({"layer_types": []}, "layer_types must be 8 times"),
        ({"clip_qkv": 8.0}, "clip_qkv=8.0 is not understood and may change the model"),
        ({"mlp_bias": True}, "mlp_bias=True is not understood"),
        ({"logit_scale": 0.5}, "logit_scale=0.5 is not understood"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not understood"),
        ({"is_causal": False}, "is_causal=False is not understood"),
        ({"per_layer_config": {"0": {}}}, "per_layer_config=.* is not understood"),
        ({"rms_norm_epsilon": 1e-5}, "is not understood .* Did you mean 'rms_norm_eps'"),
        ({"rope_parameters": {"rope_theta": 5e5}}, "hold full_attention and sliding_attention"),
        ({"rope_theta": 1e6, "rope_scaling": YARN}, "another rope_theta"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "another rope_theta"),
        ({"rope_parameters": {"sliding_attention": YARN}}, "rope_type=yarn is not .*sliding"),
        (
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 4.0}}},
            "rope_type=linear is not supported",
        ),
        (
            {"rope_scaling": YARN, "rope_parameters": {"full_attention": YARN | {"factor": 8.0}}},
            "rope_scaling and rope_parameters differ",
        ),
        (
            {"rope_scaling": YARN, "rope_parameters": {"sliding_attention": {"rope_theta": 5e5}}},
            "rope_scaling and rope_parameters differ",
        ),
        (
            {"rope_theta": 1e4, "rope_parameters": {"full_attention": {"rope_theta": 5e5}}},
            "rope_theta=10000.0 beside rope_parameters with rope_theta=500000.0",
        ),
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
    with pytest.raises(InputError, match=f"^config.json: .*{message}"):
        _read(**keys)


@pytest.fixture(params=ARCHITECTURES)
def their_config(request: pytest.FixtureRequest) -> tuple[str, Any]:
    """An architecture, and the class of its config in transformers."""
    transformers = pytest.importorskip("transformers")
    return request.param, getattr(
        transformers, request.param.removesuffix("ForCausalLM") + "Config"
    )


def test_defaults_are_those_of_the_class_in_transformers(their_config: tuple[str, Any]):
    name, config_class = their_config
    fields = config_class.__dataclass_fields__
    theirs = {"rope_theta": config_class.default_theta}  # which is no field
    for key, default in ARCHITECTURES[name].defaults.items():
        if key in fields or key in theirs:
            assert (theirs[key] if key in theirs else fields[key].default) == default, key
        else:
            assert key in ("head_dim", "rope_scaling") and default is None, key


def test_a_silent_config_is_what_transformers_writes_with_every_key(their_config: tuple[str, Any]):
    name, config_class = their_config
    silent = {"architectures": [name], **SIZES}
    full = json.loads(config_class(**silent).to_json_string(use_diff=False))
    assert full.keys() > ARCHITECTURES[name].defaults.keys() - {
        "head_dim",
        "rope_scaling",
        "rope_theta",
    }
    assert read_config(full, "full") == read_config(silent, "silent")


def test_every_key_that_the_class_computes_with_is_understood(their_config: tuple[str, Any]):
    """A key that is passed over is none that the model's code reads."""
    pytest.importorskip("torch")
    name, config_class = their_config
    module = config_class.__module__.replace("configuration_", "modeling_")
    code = inspect.getsource(importlib.import_module(module))
    read = set(re.findall(r"\bconfig\.([a-z]\w*)", code))
    read |= set(re.findall(r"getattr\((?:self\.)?config, \"(\w+)\"", code))
    known = {*SIZES, *ARCHITECTURES[name].defaults, "attention_dropout"}
    assert {"rope_parameters", "hidden_act", "attention_bias"} < read <= known
