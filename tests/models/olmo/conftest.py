import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.models.layers import RMSNorm
from jaxpretrain.models.olmo.config import Normal
from jaxpretrain.models.olmo.decoder import Decoder, DecoderModel
from jaxpretrain.models.olmo.rotary import Rope

T = 11


OLMO_1 = Decoder(
    vocab_size=29,
    embedding_rows=32,
    d_model=24,
    num_layers=4,
    num_heads=4,
    d_ff=20,
    dtype="float32",
    remat="none",
)


OLMO_2 = dataclasses.replace(
    OLMO_1,
    norm=RMSNorm(epsilon=1e-6),
    norm_position="after",
    qk_norm=True,
    rope=Rope(theta=500.0),
    init=Normal(std=0.3),
    z_loss=0.01,
)


OLMO_3 = dataclasses.replace(OLMO_2, num_kv_heads=2, windows=(3, None))


def build(config: Decoder, seq_len: int = T) -> DecoderModel:
    return config.build({"tokens": ((seq_len,), "int32")}, platform="cpu")


def make_params(config: Decoder) -> Any:
    """Random parameters; the scales of norms lie around one."""
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        draw = 0.3 * rng.normal(size=leaf.shape)
        return jnp.asarray(draw + (path[-1].key == "scale"), leaf.dtype)

    shapes = jax.eval_shape(build(config).init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def make_tokens(seed: int = 0, batch: int = 2) -> jax.Array:
    """Sequences without a token twice, so that an embedding row means a position."""
    rng = np.random.default_rng(seed)
    return jnp.array([rng.permutation(29)[:T] for _ in range(batch)], jnp.int32)


def get_logits(config: Decoder, params: Any, tokens: jax.Array) -> np.ndarray:
    return np.asarray(jax.jit(build(config).logits)(params, tokens))
