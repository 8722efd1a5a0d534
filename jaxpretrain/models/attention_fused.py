"""Attention by the tuned kernels of accelerators: cuDNN's, and splash attention on TPUs.

Lengths and head sizes that a kernel refuses are padded. Padded keys are hidden, by causality where
it does that anyway; padded queries and head channels are cut off again. The scale stays that of
the true head size.

Shapes: b batch, t positions, n query heads, m key/value heads, g = n / m, h head size.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxpretrain.models.contract import Axes, Shard
from jaxpretrain.models.masks import Mask

_SPLASH_BLOCKS = (512, 384, 256, 128)  # largest first: fewer, larger blocks are quicker
_BLOCKS = ("block_q", "block_kv", "block_q_dq", "block_kv_dq", "block_q_dkv", "block_kv_dkv")
_NO_DOCUMENT = -1


def cudnn(q_btnh: jax.Array, k_btmh: jax.Array, v_btmh: jax.Array, mask: Mask) -> jax.Array:
    """Returns cuDNN's flash attention, for NVIDIA GPUs; it takes no documents."""
    b, t, _, h = q_btnh.shape
    padding = ((0, 0), (0, -t % 64), (0, 0), (0, -h % 8))
    q, k, v = (jnp.pad(x, padding) for x in (q_btnh, k_btmh, v_btmh))
    hides_padding = mask.causal or t % 64 == 0
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=h**-0.5,
        is_causal=mask.causal,
        key_value_seq_lengths=None if hides_padding else jnp.full(b, t, jnp.int32),
        local_window_size=None if mask.window is None else (mask.window - 1, 0),
        implementation="cudnn",
    )
    return out[:, :t, :, :h]


def splash(
    q_btnh: jax.Array, k_btmh: jax.Array, v_btmh: jax.Array, mask: Mask, shard: Shard
) -> jax.Array:
    """Returns JAX's splash attention, for TPUs; each device runs it on its own part."""
    b, t, n, h = q_btnh.shape
    m = k_btmh.shape[2]
    block = min(_SPLASH_BLOCKS, key=lambda size: -(-t // size) * size)
    padding = -t % block
    documents_bt = mask.documents_bt
    if documents_bt is None and padding and not mask.causal:
        documents_bt = jnp.zeros((b, t), jnp.int32)  # one document that ends where the padding is

    # The kernel does not scale.
    q_btnh = (q_btnh.astype(jnp.float32) * h**-0.5).astype(q_btnh.dtype)
    q_bmgth = q_btnh.reshape(b, t, m, n // m, h).transpose(0, 2, 3, 1, 4)
    k_bmth, v_bmth = (x.transpose(0, 2, 1, 3) for x in (k_btmh, v_btmh))
    pad = ((0, padding), (0, 0))
    arrays = [jnp.pad(x, ((0, 0),) * (x.ndim - 2) + pad) for x in (q_bmgth, k_bmth, v_bmth)]
    axes: list[Axes] = [("batch", "heads", *(None,) * (x.ndim - 2)) for x in arrays]
    if documents_bt is not None:
        pad = ((0, 0), (0, padding))
        arrays.append(jnp.pad(documents_bt, pad, constant_values=_NO_DOCUMENT))
        axes.append(("batch", None))

    def attend(
        q_bmgth: jax.Array, k_bmth: jax.Array, v_bmth: jax.Array, *documents_bt: jax.Array
    ) -> jax.Array:
        b, m, g, t, h = q_bmgth.shape
        kernel = jax.vmap(_splash_kernel(m * g, t, block, mask))
        out_bnth = kernel(q_bmgth.reshape(b, m * g, t, h), k_bmth, v_bmth, *documents_bt)
        return out_bnth.reshape(q_bmgth.shape)

    out_bmgth = shard(attend, arrays, axes)[:, :, :, :t]
    return out_bmgth.transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)


def _splash_kernel(num_heads: int, length: int, block: int, mask: Mask) -> Callable[..., jax.Array]:
    """Returns a function (q [n, t, h], k [m, t, h], v [m, t, h], documents [t]?) -> [n, t, h]."""
    # Imported here: it takes a quarter of a second, which only TPUs should pay.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    shape = (length, length)
    if mask.window is not None:
        head_mask = masks.LocalMask(shape, window_size=(mask.window - 1, 0), offset=0)
    else:
        head_mask = masks.CausalMask(shape) if mask.causal else masks.FullMask(shape)
    attend = kernel.make_splash_mha(
        masks.MultiHeadMask([head_mask] * num_heads),
        block_sizes=kernel.BlockSizes(**dict.fromkeys(_BLOCKS, block)),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="attention",
    )

    def run(
        q_nth: jax.Array,
        k_mth: jax.Array,
        v_mth: jax.Array,
        documents_t: jax.Array | None = None,
    ) -> jax.Array:
        segments = None if documents_t is None else kernel.SegmentIds(documents_t, documents_t)
        return attend(q_nth, k_mth, v_mth, segments)  # pyright: ignore[reportReturnType]

    return run
