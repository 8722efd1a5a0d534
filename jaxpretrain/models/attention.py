"""Causal self-attention behind one function; all kernel tricks live here and nowhere else.

Every implementation equals the plain formula (`_plain`): softmax(q k^T / sqrt(h)) v over the
positions that causality and the sliding window let through, softmax in float32.

Shapes: b batch, t query positions, s key positions, n query heads, m key/value heads (n is a
multiple of m), h head size.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxpretrain.config.errors import InputError

AttentionKernel = Literal["xla", "xla_blocks", "xla_blocks_float32", "cudnn"]
AttentionChoice = Literal["auto", "xla", "xla_blocks", "cudnn"]

MIN_QUERY_BLOCK = 64
_MASKED = -1e30  # finite: a row that is masked throughout must not become NaN


def resolve_kernel(choice: AttentionChoice, platform: str, dtype: str) -> AttentionKernel:
    """The kernel that `choice` means on `platform` ("cpu", "gpu", "tpu"), for start-up to print.

    Raises:
      InputError: cuDNN is asked for where it cannot run.
    """
    takes_cudnn = platform in ("gpu", "cuda") and dtype == "bfloat16"
    if choice == "cudnn" and not takes_cudnn:
        raise InputError(
            f"model.attention=cudnn needs an NVIDIA GPU and model.dtype=bfloat16; here are "
            f"{platform} and {dtype}"
        )
    if choice != "auto":
        return choice
    if takes_cudnn:
        return "cudnn"
    # On CPUs, products of bfloat16 blocks and their transposes take longer than those of float32.
    return "xla_blocks_float32" if (platform, dtype) == ("cpu", "bfloat16") else "xla_blocks"


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
    if kernel == "xla":
        out_btnh = _plain(q_btnh, k_btmh, v_btmh, window)
    else:
        dtype = jnp.float32 if kernel == "xla_blocks_float32" else q_btnh.dtype
        q, k, v = (x.astype(dtype) for x in (q_btnh, k_btmh, v_btmh))
        out_btnh = _blocks(q, k, v, window).astype(q_btnh.dtype)
    return checkpoint_name(out_btnh, "attention")


def keep_attention(primitive: Any, *_: Any, **params: Any) -> bool:
    """A policy for `jax.checkpoint` that keeps the output of attention and recomputes the rest.

    cuDNN's backward pass reads the softmax sums too, which its kernel gives along with the output:
    the kernel's results are kept, else it would run twice.
    """
    is_output = primitive.name == "name" and params["name"] == "attention"
    return is_output or primitive.name.startswith("dot_product_attention_fwd")


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

    Heads come first, so that every product is a plain batched one over (b, m) with the rows
    r = (g, t) of all query heads that share a key; and weights are divided by their sum after they
    met the values, when there is less to divide. b and m stay apart: merged, axes that are sharded
    over different devices would have to be gathered.
    """
    b, t, n, h = q_btnh.shape
    m = k_btmh.shape[2]
    q_bmgth = q_btnh.reshape(b, t, m, n // m, h).transpose(0, 2, 3, 1, 4)
    q_bmgth = q_bmgth * jnp.asarray(h**-0.5, q_bmgth.dtype)
    k_bmth, v_bmth = (x.transpose(0, 2, 1, 3) for x in (k_btmh, v_btmh))
    size = _block_size(t)
    outputs = []
    for start in range(0, t, size):
        stop = min(start + size, t)
        first = 0 if window is None else max(0, start - window + 1)
        visible_ts = _visible(start, stop, first, stop, window)
        q_bmrh = q_bmgth[:, :, :, start:stop].reshape(b, m, -1, h)
        keys = slice(first, stop)
        out_bmrh = _block(q_bmrh, k_bmth[:, :, keys], v_bmth[:, :, keys], visible_ts)
        outputs.append(out_bmrh.reshape(b, m, n // m, stop - start, h))
    return jnp.concatenate(outputs, axis=3).transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)


def _block(
    q_bmrh: jax.Array, k_bmsh: jax.Array, v_bmsh: jax.Array, visible_ts: jax.Array
) -> jax.Array:
    num_groups = q_bmrh.shape[2] // visible_ts.shape[0]
    visible_rs = jnp.tile(visible_ts, (num_groups, 1))
    scores_bmrs = jnp.einsum("bmrh,bmsh->bmrs", q_bmrh, k_bmsh, preferred_element_type=jnp.float32)
    scores_bmrs = jnp.where(visible_rs[None, None], scores_bmrs, _MASKED)
    peak_bmr1 = jax.lax.stop_gradient(jnp.max(scores_bmrs, axis=-1, keepdims=True))
    weights_bmrs = jnp.exp(scores_bmrs - peak_bmr1)
    sum_bmr1 = jnp.sum(weights_bmrs, axis=-1, keepdims=True)
    out_bmrh = jnp.einsum(
        "bmrs,bmsh->bmrh",
        weights_bmrs.astype(v_bmsh.dtype),
        v_bmsh,
        preferred_element_type=jnp.float32,
    )
    return (out_bmrh / sum_bmr1).astype(v_bmsh.dtype)


def _block_size(length: int) -> int:
    """Queries of a block: many small blocks save work, few keep compilation short."""
    smallest = MIN_QUERY_BLOCK if length < 8 * MIN_QUERY_BLOCK else 2 * MIN_QUERY_BLOCK
    return max(smallest, -(-length // (8 * MIN_QUERY_BLOCK)) * MIN_QUERY_BLOCK)


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


def attended_pairs(length: int, window: int | None, causal: bool) -> float:
    """Pairs (query, key) of one layer and one sequence that are computed, or let through."""
    reach = length if window is None else min(window, length)
    if not causal:
        return float(length * reach)
    return reach * (reach + 1) / 2 + (length - reach) * reach
