"""The kernels of attention: plain operations, cuDNN's, and splash attention on TPUs.

Lengths and head sizes that the tuned kernels of accelerators refuse are padded. Padded keys are
hidden, by causality where it does that anyway; padded queries and head channels are cut off again.
The scale stays that of the true head size.

Shapes: b batch, t query positions, s key positions, n query heads, m key/value heads, g = n / m
query heads that share a key, h head size, r = (g, t) rows, c chunks of queries.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxpretrain.models.contract import Axes, Shard
from jaxpretrain.models.masks import Mask, same

_einsum = partial(jnp.einsum, preferred_element_type=jnp.float32)

MIN_QUERY_BLOCK = 64
QUERY_CHUNK = 256
_MASKED = -1e30  # finite: a row that is masked throughout must not become NaN


def plain(q_btnh: jax.Array, k_bsmh: jax.Array, v_bsmh: jax.Array, mask: Mask) -> jax.Array:
    """Returns attention by the formula, all pairs at once."""
    b, t, n, h = q_btnh.shape
    m = k_bsmh.shape[2]
    q_btmgh = q_btnh.reshape(b, t, m, n // m, h) * jnp.asarray(h**-0.5, q_btnh.dtype)
    scores_bmgts = _einsum("btmgh,bsmh->bmgts", q_btmgh, k_bsmh)
    visible_bts = mask.visible(slice(0, t), slice(0, t))
    if visible_bts is not None:
        scores_bmgts = jnp.where(visible_bts[:, None, None], scores_bmgts, _MASKED)
    weights_bmgts = jax.nn.softmax(scores_bmgts, axis=-1).astype(v_bsmh.dtype)
    return jnp.einsum("bmgts,bsmh->btmgh", weights_bmgts, v_bsmh).reshape(b, t, n, h)


def blocks(q_btnh: jax.Array, k_btmh: jax.Array, v_btmh: jax.Array, mask: Mask) -> jax.Array:
    """Returns attention computed by blocks of queries, so that all pairs never exist at once.

    Heads come first, so that every product is a plain batched one over (b, m) with the rows
    r = (g, t) of all query heads that share a key. b and m stay apart: merged, axes that are
    sharded over different devices would have to be gathered.
    """
    q_bmgth = _scaled_by_key(q_btnh, k_btmh.shape[2])
    k_bmth, v_bmth = (x.transpose(0, 2, 1, 3) for x in (k_btmh, v_btmh))
    over_queries = _causal_blocks if mask.causal else _equal_chunks
    out_bmgth = over_queries(q_bmgth, k_bmth, v_bmth, mask)
    return out_bmgth.transpose(0, 3, 1, 2, 4).reshape(q_btnh.shape)


def cached(
    q_btnh: jax.Array, k_bmsh: jax.Array, v_bmsh: jax.Array, visible_bts: jax.Array
) -> jax.Array:
    """Returns attention of few queries to cached keys, heads first; all pairs exist at once."""
    q_bmgth = _scaled_by_key(q_btnh, k_bmsh.shape[1])
    b, m, g, t, h = q_bmgth.shape
    out_bmrh = _block(q_bmgth.reshape(b, m, g * t, h), k_bmsh, v_bmsh, visible_bts)
    out_bmgth = out_bmrh.reshape(b, m, g, t, h)
    return out_bmgth.transpose(0, 3, 1, 2, 4).reshape(q_btnh.shape)


def _scaled_by_key(q_btnh: jax.Array, num_kv_heads: int) -> jax.Array:
    """Returns queries [b, m, g, t, h] in groups that share a key, divided by the root of h."""
    b, t, n, h = q_btnh.shape
    q_bmgth = q_btnh.reshape(b, t, num_kv_heads, n // num_kv_heads, h).transpose(0, 2, 3, 1, 4)
    return q_bmgth * jnp.asarray(h**-0.5, q_bmgth.dtype)


def _causal_blocks(
    q_bmgth: jax.Array, k_bmth: jax.Array, v_bmth: jax.Array, mask: Mask
) -> jax.Array:
    """Attends with each block to only the keys it may see: half of the plain formula's work."""
    b, m, g, t, h = q_bmgth.shape
    size = _block_size(t)
    # A window measures positions; where there are branches, these are not the places.
    window = mask.window if mask.branches is None else None
    outputs = []
    for start in range(0, t, size):
        queries = slice(start, min(start + size, t))
        first = 0 if window is None else max(0, start - window + 1)
        keys = slice(first, queries.stop)
        q_bmrh = q_bmgth[:, :, :, queries].reshape(b, m, -1, h)
        visible_bts = mask.visible(queries, keys)
        out_bmrh = _block(q_bmrh, k_bmth[:, :, keys], v_bmth[:, :, keys], visible_bts)
        outputs.append(out_bmrh.reshape(b, m, g, -1, h))
    return jnp.concatenate(outputs, axis=3)


def _equal_chunks(
    q_bmgth: jax.Array, k_bmsh: jax.Array, v_bmsh: jax.Array, mask: Mask
) -> jax.Array:
    """Attends with chunks of one size in turn to all keys; gradients compute the weights again."""
    b, m, g, t, h = q_bmgth.shape
    num_chunks = -(-t // QUERY_CHUNK)
    if num_chunks == 1:
        visible_bts = mask.visible(slice(0, t), slice(0, t))
        out_bmrh = _block(q_bmgth.reshape(b, m, g * t, h), k_bmsh, v_bmsh, visible_bts)
        return out_bmrh.reshape(b, m, g, t, h)
    size = -(-t // num_chunks)
    padding = num_chunks * size - t

    @jax.checkpoint
    def attend(chunk: tuple[jax.Array, jax.Array | None]) -> jax.Array:
        q_bmrh, documents_bt = chunk
        visible_bts = None
        if documents_bt is not None and mask.documents_bt is not None:
            visible_bts = same(documents_bt, mask.documents_bt)
        return _block(q_bmrh, k_bmsh, v_bmsh, visible_bts)

    q_bmgth = jnp.pad(q_bmgth, ((0, 0),) * 3 + ((0, padding), (0, 0)))
    q_cbmgth = jnp.moveaxis(q_bmgth.reshape(b, m, g, num_chunks, size, h), 3, 0)
    documents_cbt = None
    if mask.documents_bt is not None:
        documents_bt = jnp.pad(mask.documents_bt, ((0, 0), (0, padding)), mode="edge")
        documents_cbt = jnp.moveaxis(documents_bt.reshape(b, num_chunks, size), 1, 0)
    chunks = q_cbmgth.reshape(num_chunks, b, m, g * size, h), documents_cbt
    out_cbmgth = jax.lax.map(attend, chunks).reshape(num_chunks, b, m, g, size, h)
    return jnp.moveaxis(out_cbmgth, 0, 3).reshape(b, m, g, -1, h)[:, :, :, :t]


def _product_forward(
    equation: str, a: jax.Array, b: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _einsum(equation, a, b), (a, b)


def _product_backward(
    equation: str, operands: tuple[jax.Array, jax.Array], dout: jax.Array
) -> tuple[jax.Array, jax.Array]:
    a, b = operands
    dout = dout.astype(a.dtype)
    (da,) = jax.linear_transpose(lambda a: jnp.einsum(equation, a, b), a)(dout)
    (db,) = jax.linear_transpose(lambda b: jnp.einsum(equation, a, b), b)(dout)
    return da, db


# An einsum in float32, whose gradients multiply in the dtype of the operands. JAX alone would
# multiply float32 by float32 there, at half the rate or less.
_product = jax.custom_vjp(_einsum, nondiff_argnums=(0,))
_product.defvjp(_product_forward, _product_backward)


def _block(
    q_bmrh: jax.Array, k_bmsh: jax.Array, v_bmsh: jax.Array, visible_bts: jax.Array | None
) -> jax.Array:
    """Attends with rows of queries to keys; divides after the product, where there is less."""
    scores_bmrs = _product("bmrh,bmsh->bmrs", q_bmrh, k_bmsh)
    if visible_bts is not None:
        num_groups = q_bmrh.shape[2] // visible_bts.shape[1]
        visible_brs = jnp.tile(visible_bts, (1, num_groups, 1))
        scores_bmrs = jnp.where(visible_brs[:, None], scores_bmrs, _MASKED)
    peak_bmr1 = jax.lax.stop_gradient(jnp.max(scores_bmrs, axis=-1, keepdims=True))
    weights_bmrs = jnp.exp(scores_bmrs - peak_bmr1)
    sum_bmr1 = jnp.sum(weights_bmrs, axis=-1, keepdims=True)
    out_bmrh = _product("bmrs,bmsh->bmrh", weights_bmrs.astype(v_bmsh.dtype), v_bmsh)
    return (out_bmrh / sum_bmr1).astype(v_bmsh.dtype)


def _block_size(length: int) -> int:
    """Returns the queries of a block: many small blocks save work, few keep compilation short."""
    smallest = MIN_QUERY_BLOCK if length < 8 * MIN_QUERY_BLOCK else 2 * MIN_QUERY_BLOCK
    return max(smallest, -(-length // (8 * MIN_QUERY_BLOCK)) * MIN_QUERY_BLOCK)


_SPLASH_BLOCKS = (512, 384, 256, 128)  # largest first: fewer, larger blocks are quicker
_BLOCKS = ("block_q", "block_kv", "block_q_dq", "block_kv_dq", "block_q_dkv", "block_kv_dkv")
_NO_DOCUMENT = -1


def cudnn(
    q_btnh: jax.Array, k_btmh: jax.Array, v_btmh: jax.Array, mask: Mask, shard: Shard
) -> jax.Array:
    """Returns cuDNN's flash attention, for NVIDIA GPUs; it takes no documents."""
    b, t, n, h = q_btnh.shape
    m = k_btmh.shape[2]

    def attend(q_btmgh: jax.Array, k_btmh: jax.Array, v_btmh: jax.Array) -> jax.Array:
        b, t, m, g, h = q_btmgh.shape
        q_btnh = q_btmgh.reshape(b, t, m * g, h)
        padding = ((0, 0), (0, -t % 2), (0, 0), (0, -h % 8))
        q, k, v = (jnp.pad(x, padding) for x in (q_btnh, k_btmh, v_btmh))
        hides_padding = mask.causal or t % 2 == 0
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
        return out[:, :t, :, :h].reshape(q_btmgh.shape)

    # XLA could divide it, but not where a copy of the model is computed on its own.
    arrays = q_btnh.reshape(b, t, m, n // m, h), k_btmh, v_btmh
    axes: list[Axes] = [("batch", None, "heads", *(None,) * (x.ndim - 3)) for x in arrays]
    return shard(attend, arrays, axes).reshape(q_btnh.shape)


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

    def run(q: jax.Array, k: jax.Array, v: jax.Array, *documents_t: jax.Array) -> jax.Array:
        segments = kernel.SegmentIds(*documents_t, *documents_t) if documents_t else None
        return attend(q, k, v, segments)  # pyright: ignore[reportReturnType]

    return run
