"""Models of transformers with random settings: refused in one line, or the same logits."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxpretrain.config.errors import InputError
from jaxpretrain.interop import tables
from jaxpretrain.interop.hf_config import ARCHITECTURES
from jaxpretrain.interop.hugging_face import open_hugging_face
from tests.parity.models import nested

FULL, SLIDING = "full_attention", "sliding_attention"
NUM_LAYERS = 4
ROPES: tuple[dict[str, Any], ...] = (
    {"rope_type": "default"},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 7, "beta_fast": 2.0},
    {"type": "yarn", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 3},
    {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.0},
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 4.0},
)
MODEL_KEYS: dict[str, tuple[Any, ...]] = {
    "num_key_value_heads": (None, 1, 2, 4),
    "tie_word_embeddings": (False, True),
    "rms_norm_eps": (1e-6, 1e-2),
    "rope_theta": (100.0, 500000.0),
    "clip_qkv": (0.5,),
    "sliding_window": (8, 8, 5, None),
    "layer_types": ([FULL] * 4, [SLIDING] * 4, [SLIDING, FULL] * 2),
    "initializer_range": (0.1,),
    "attention_dropout": (0.5,),
}
"""Values that are drawn often."""
ODD_KEYS: dict[str, tuple[Any, ...]] = {
    "attention_bias": (True,),
    "mlp_bias": (True,),
    "hidden_act": ("gelu", "relu"),
    "head_dim": (4, 8, 16),
    "partial_rotary_factor": (0.5,),
    "pretraining_tp": (2,),
    "is_causal": (False,),
    "logit_scale": (0.5,),
}
"""Values that are drawn seldom, each for one model in twenty."""


def draw_config(random: np.random.Generator) -> dict[str, Any]:
    """A config.json."""

    def one_of(values: Any) -> Any:
        return values[random.integers(len(values))]

    name = one_of(list(ARCHITECTURES))
    architecture = ARCHITECTURES[name]
    config: dict[str, Any] = {
        "architectures": [name],
        "model_type": architecture.model_type,
        "vocab_size": 48,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
    }
    for key, values in MODEL_KEYS.items():
        is_theirs = key in architecture.defaults or random.random() < 0.05
        if is_theirs and random.random() < 0.4:
            config[key] = one_of(values)
    for key, values in ODD_KEYS.items():
        if random.random() < 0.05:
            config[key] = one_of(values)

    def rope() -> dict[str, Any]:
        theta = {"rope_theta": one_of([100.0, 500000.0])} if random.random() < 0.4 else {}
        return one_of(ROPES[:4] if random.random() < 0.7 else ROPES) | theta

    if random.random() < 0.3:
        config["rope_scaling"] = rope()
    if random.random() < 0.3:
        by_kind = ("layer_types" in architecture.defaults) != (random.random() < 0.1)
        kinds = [kind for kind in (FULL, SLIDING) if random.random() < 0.7]
        config["rope_parameters"] = {kind: rope() for kind in kinds} if by_kind else rope()
    return config


def save_model(config: dict[str, Any], tokens_bt: np.ndarray, folder: Path) -> np.ndarray | None:
    """Their logits of a model with random weights, saved; None if they cannot make it."""
    import torch
    import transformers

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    try:
        loaded = transformers.AutoConfig.from_pretrained(folder)
        model: Any = transformers.AutoModelForCausalLM.from_config(loaded).eval()
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():  # large enough that every part of a layer shows
                noise = torch.randn_like(parameter)
                parameter.copy_(0.25 * noise if parameter.ndim == 2 else 1 + 0.1 * noise)
            logits = model(torch.tensor(tokens_bt)).logits.numpy()
    except Exception:  # whatever it is, there is nothing to compare with
        return None
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    return logits


def our_logits(folder: Path, tokens_bt: np.ndarray) -> np.ndarray:
    source = open_hugging_face(folder)
    model = replace(source.model, dtype="float32", remat="none")
    built = model.build(source.data.example_spec(), platform="cpu")
    params = nested({name: tables.whole(array) for name, array in source.params.items()})
    return np.asarray(jax.jit(built.logits)(params, jnp.asarray(tokens_bt)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_random_models_are_refused_in_one_line_or_give_the_same_logits(tmp_path: Path):
    for program in ("torch", "transformers"):
        pytest.importorskip(program)
    random = np.random.default_rng(0)
    tokens = random.integers(48, size=(2, 40))
    refused, same, wrong = [], set(), []
    number = 0
    while len(refused) + len(same) + len(wrong) < 40:
        number += 1
        config, folder = draw_config(random), tmp_path / str(number)
        expected = save_model(config, tokens, folder)
        if expected is None:
            continue
        try:
            difference = np.abs(our_logits(folder, tokens) - expected).max()
        except InputError as error:
            refused.append(str(error))
            continue
        if difference < 1e-4 < np.std(expected):
            same.add((number, config["architectures"][0]))
        else:
            wrong.append((float(difference), config))
    assert not wrong
    assert not [message for message in refused if "\n" in message]
    assert len(same) >= 12 and {name for _, name in same} == set(ARCHITECTURES)
    assert len(set(refused)) >= 8
