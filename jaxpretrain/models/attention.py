"""Causal self-attention behind one function; all kernel tricks live here and nowhere else.

Every implementation equals the plain formula (`_plain`): softmax(q k^T / sqrt(h)) v over the
positions that causality and the sliding window let through, softmax in float32.

Shapes: b batch, t query positions, s key positions, n query heads, m key/value heads (n is a
multiple of m), h head size.
"""

from typing import Literal

import jax
import jax.numpy as jnp

AttentionKernel = Literal["xla", "xla_blocks", "cudnn"]
AttentionChoice = Literal["auto", "xla", "xla_blocks", "cudnn"]

MIN_QUERY_BLOCK = 64
_MASKED = -1e30  # finite: a row that is masked throughout must not become NaN


def resolve_kernel(choice: AttentionChoice, platform: str, dtype: str) -> AttentionKernel:
    """The kernel that `choice` means on `platform` ("cpu", "gpu", "tpu"), for start-up to print."""
    if choice != "auto":
        return choice
    if platform in ("gpu", "cuda") and dtype == "bfloat16":
        return "cudnn"  # cuDNN's flash attention takes half precision only
    return "xla_blocks"


def attention(
    q_btnh: jax.Array,
    k_btmh: jax.Array,
    v_btmh: jax.Array,
    *,
    kernel: AttentionKernel,
    window: int | None = None,
) -> jax.Array:
    """Causal attention, [b, t, n, h] like `q_btnh`.

    Args:
      q_btnh: queries.
      k_btmh: keys; query head i uses key/value head i // (n // m).
      v_btmh: values.
      kernel: implementation, as `resolve_kernel` returns it.
      window: positions a query sees, itself included; None for all earlier ones.
    """
    if kernel == "cudnn":
        return _cudnn(q_btnh, k_btmh, v_btmh, window)
    if kernel == "xla_blocks":
        return _blocks(q_btnh, k_btmh, v_btmh, window)
    return _plain(q_btnh, k_btmh, v_btmh, window)


def _plain(
    q_btnh: jax.Array, k_bsmh: jax.Array, v_bsmh: jax.Array, window: int | None
) -> jax.Array:
    """The formula, all pairs at once."""
    b, t, n, h = q_btnh.shape
    m = k_bsmh.shape[2]
    q_btmgh = q_btnh.reshape(b, t, m, n // m, h) * jnp.asarray(h**-0.5, q_btnh.dtype)
    scores_bmgts = jnp.einsum(
        "btmgh,bsmh->bmgts", q_btmgh, k_bsmh, preferred_element_type=jnp.float32
    )
    visible_ts = _visible(0, t, 0, t, window)
    scores_bmgts = jnp.where(visible_ts[None, None, None], scores_bmgts, _MASKED)
    weights_bmgts = jax.nn.softmax(scores_bmgts, axis=-1).astype(v_bsmh.dtype)
    return jnp.einsum("bmgts,bsmh->btmgh", weights_bmgts, v_bsmh).reshape(b, t, n, h)


def _blocks(
    q_btnh: jax.Array, k_btmh: jax.Array, v_btmh: jax.Array, window: int | None
) -> jax.Array:
    """Query blocks, each against only the keys it may see: half of the plain formula's work.

    Heads come first, so that every product is a plain batched one over z = (b, m) with the rows
    r = (g, t) of all query heads that share a key; and weights are divided by their sum after they
    met the values, when there is less to divide.
    """
    b, t, n, h = q_btnh.shape
    m = k_btmh.shape[2]
    q_zgth = q_btnh.reshape(b, t, m, n // m, h).transpose(0, 2, 3, 1, 4).reshape(-1, n // m, t, h)
    q_zgth = q_zgth * jnp.asarray(h**-0.5, q_zgth.dtype)
    k_zth, v_zth = (x.transpose(0, 2, 1, 3).reshape(-1, t, h) for x in (k_btmh, v_btmh))
    size = _block_size(t)
    outputs = []
    for start in range(0, t, size):
        stop = min(start + size, t)
        first = 0 if window is None else max(0, start - window + 1)
        visible_ts = _visible(start, stop, first, stop, window)
        q_zrh = q_zgth[:, :, start:stop].reshape(q_zgth.shape[0], -1, h)
        out_zrh = _block(q_zrh, k_zth[:, first:stop], v_zth[:, first:stop], visible_ts)
        outputs.append(out_zrh.reshape(b, m, n // m, stop - start, h))
    return jnp.concatenate(outputs, axis=3).transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)


def _block(
    q_zrh: jax.Array, k_zsh: jax.Array, v_zsh: jax.Array, visible_ts: jax.Array
) -> jax.Array:
    num_groups = q_zrh.shape[1] // visible_ts.shape[0]
    scores_zrs = jnp.einsum("zrh,zsh->zrs", q_zrh, k_zsh, preferred_element_type=jnp.float32)
    scores_zrs = jnp.where(jnp.tile(visible_ts, (num_groups, 1))[None], scores_zrs, _MASKED)
    peak_zr1 = jax.lax.stop_gradient(jnp.max(scores_zrs, axis=-1, keepdims=True))
    weights_zrs = jnp.exp(scores_zrs - peak_zr1)
    sum_zr1 = jnp.sum(weights_zrs, axis=-1, keepdims=True)
    out_zrh = jnp.einsum(
        "zrs,zsh->zrh",
        weights_zrs.astype(v_zsh.dtype),
        v_zsh,
        preferred_element_type=jnp.float32,
    )
    return (out_zrh / sum_zr1).astype(v_zsh.dtype)


def _block_size(length: int) -> int:
    """Queries of a block: many small blocks save work, few keep compilation short."""
    return max(MIN_QUERY_BLOCK, -(-length // (8 * MIN_QUERY_BLOCK)) * MIN_QUERY_BLOCK)


def _visible(
    query_start: int, query_stop: int, key_start: int, key_stop: int, window: int | None
) -> jax.Array:
    """[t, s] booleans: which keys which queries see, by their positions in the sequence."""
    queries_t1 = jnp.arange(query_start, query_stop)[:, None]
    distance_ts = queries_t1 - jnp.arange(key_start, key_stop)[None, :]
    visible_ts = distance_ts >= 0
    return visible_ts if window is None else visible_ts & (distance_ts < window)


def _cudnn(
    q_btnh: jax.Array, k_btmh: jax.Array, v_btmh: jax.Array, window: int | None
) -> jax.Array:
    """cuDNN's flash attention; lengths and head sizes that it refuses are padded.

    Padded keys lie after every real query, so causality hides them; padded head channels are zero
    in q, k and v and are cut off again. The scale stays that of the true head size.
    """
    t, h = q_btnh.shape[1], q_btnh.shape[3]
    padding = ((0, 0), (0, -t % 64), (0, 0), (0, -h % 8))
    q, k, v = (jnp.pad(x, padding) for x in (q_btnh, k_btmh, v_btmh))
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=h**-0.5,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )
    return out[:, :t, :, :h]
