"""Tiny models of other programs, written by hand: no torch is needed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxpretrain.data.token_files.tokenizer import train_bpe

CONFIG = {
    "architectures": ["Olmo2ForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500000.0,
    "eos_token_id": 0,
    "pad_token_id": 1,
    "tie_word_embeddings": False,
}


def olmo_2_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors that transformers has for an OLMo 2 of that config."""
    d, f, v = (config[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
    kv = d * config["num_key_value_heads"] // config["num_attention_heads"]
    shapes = {"model.embed_tokens.weight": (v, d), "model.norm.weight": (d,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (v, d)
    for layer in range(config["num_hidden_layers"]):
        block = {
            "self_attn.q_proj": (d, d),
            "self_attn.k_proj": (kv, d),
            "self_attn.v_proj": (kv, d),
            "self_attn.o_proj": (d, d),
            "self_attn.q_norm": (d,),
            "self_attn.k_norm": (kv,),
            "mlp.gate_proj": (f, d),
            "mlp.up_proj": (f, d),
            "mlp.down_proj": (d, f),
            "post_attention_layernorm": (d,),
            "post_feedforward_layernorm": (d,),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": s for name, s in block.items()}
    return shapes


def random_tensors(
    shapes: dict[str, tuple[int, ...]], dtype: Any = np.float32, seed: int = 0
) -> dict[str, np.ndarray]:
    """Normal draws; the same seed gives the same."""
    random = np.random.default_rng(seed)
    return {name: random.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


@pytest.fixture
def hugging_face(tmp_path: Path) -> Callable[..., tuple[Path, dict[str, np.ndarray]]]:
    """Makes the folder of a tiny OLMo 2: (folder, its tensors)."""

    def make(
        name: str = "source", *, dtype: Any = jnp.bfloat16, seed: int = 0, **changes: Any
    ) -> tuple[Path, dict[str, np.ndarray]]:
        folder = tmp_path / name
        folder.mkdir()
        config = CONFIG | changes
        tensors = random_tensors(olmo_2_shapes(config), dtype, seed)
        (folder / "config.json").write_text(json.dumps(config))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder, tensors

    return make


@pytest.fixture(scope="session")
def tokenizer_json() -> str:
    """A tokenizer of up to 300 ids, of which 0 ends documents."""
    return train_bpe(["the union of the states " * 20], 300, "<|end|>")
