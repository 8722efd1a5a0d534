"""Cross-entropy over a large vocabulary, in chunks: the full logits never exist.

Shapes: b batch, t positions, r rows of one chunk (batch times positions), d model width,
v vocabulary (padded).
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxpretrain.models.contract import IN_ONE, Batch, Spread
from jaxpretrain.models.layers import PLAIN, Products

CHUNK = 512
"""The positions of each sequence whose logits exist at once in training."""


def next_tokens(batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns weights of sequences [b], and the target of each position with its weight [b, t]."""
    tokens_bt = batch["tokens"]
    example_b = batch.get("weight", jnp.ones(tokens_bt.shape[0], jnp.float32))
    # The last position has no target; it keeps its place so that lengths stay round.
    targets_bt = jnp.roll(tokens_bt, -1, axis=1)
    weights_bt = jnp.ones(tokens_bt.shape, jnp.float32).at[:, -1].set(0.0)
    weights_bt = weights_bt * example_b[:, None]
    if "mask" in batch:
        weights_bt = weights_bt * jnp.roll(batch["mask"], -1, axis=1)
    return example_b, targets_bt, weights_bt


def cross_entropy(
    x_btd: jax.Array,
    kernel_dv: jax.Array,
    targets_bt: jax.Array,
    weights_bt: jax.Array,
    *,
    z_loss: float = 0.0,
    chunk: int = CHUNK,
    products: Products = PLAIN,
    reduce_dtype: DTypeLike = jnp.float32,
    spread: Spread = IN_ONE,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns weighted sums of the cross-entropy and of z = logsumexp(logits)^2 over positions.

    Only the first result, the objective sum(ce + z_loss * z), carries a gradient, and only to
    `x_btd` and `kernel_dv`. The gradient of each chunk's logits is taken while they exist (three
    matrix products a chunk; recomputing them would take four). Products have the dtype of `x_btd`,
    to which the kernel is rounded; sums are in float32.

    Where devices share the kernel, `kernel_dv` is the part of one, and `spread` leads to the whole.
    The kernel's gradient is rounded to `reduce_dtype` before it is summed over the devices; the
    part of one is all that is kept of it for the backward pass.

    Targets are ids in [0, v), weights float32; `z_loss` is the weight of z (PaLM, section 5).

    Returns:
      The objective, a scalar; cross-entropy and z of each sequence, [b]; float32, in nats.
    """
    arrays = (x_btd, kernel_dv, targets_bt, weights_bt)
    options = (z_loss, chunk, products, jnp.dtype(reduce_dtype), spread)
    objective, ce_b, z_b = _chunked(*arrays, *options)
    return objective, jax.lax.stop_gradient(ce_b), jax.lax.stop_gradient(z_b)


def token_losses(
    x_btd: jax.Array,
    kernel_dv: jax.Array,
    targets_bt: jax.Array,
    weights_bt: jax.Array,
    *,
    products: Products = PLAIN,
) -> jax.Array:
    """Returns the weighted cross-entropy of each position, float32 [b, t], in nats.

    Each position counts as a sequence of its own in `cross_entropy`, whose logits are the same.
    """
    width = x_btd.shape[-1]

    def of_chunk(part: slice) -> jax.Array:
        columns = [a[:, part].reshape(-1, 1) for a in (targets_bt, weights_bt)]
        x_r1d = x_btd[:, part].reshape(-1, 1, width)
        _, ce_r, _ = cross_entropy(x_r1d, kernel_dv, *columns, products=products)
        return ce_r.reshape(len(x_btd), -1)

    starts = range(0, x_btd.shape[1], CHUNK)
    return jnp.concatenate([of_chunk(slice(at, at + CHUNK)) for at in starts], axis=1)


def _chunked_sums(*arguments):
    return _fold(*arguments, with_gradients=False)[0]


def _chunked_forward(*arguments):
    return _fold(*arguments, with_gradients=True)


def _fold(
    x_btd,
    part_dv,
    targets_bt,
    weights_bt,
    z_loss,
    chunk,
    products,
    reduce_dtype,
    spread,
    *,
    with_gradients,
):
    """Returns (objective, cross-entropy [b], z [b]), and the gradients of the objective or None."""
    batch = x_btd.shape[0]
    kernel_dv = spread.gather(part_dv.astype(x_btd.dtype))
    kernel_vd = products.transposed(kernel_dv) if with_gradients else kernel_dv

    def add_chunk(carry, inputs):
        ce_b, z_b, dkernel_dv = carry
        x_rd, targets_r, weights_r = inputs
        logits_rv = jnp.einsum("rd,dv->rv", x_rd, kernel_dv, preferred_element_type=jnp.float32)
        lse_r = jax.nn.logsumexp(logits_rv, axis=1)
        # Not gathered: XLA cannot gather from logits that devices share, in a part of the mesh.
        is_target_rv = jnp.arange(logits_rv.shape[1])[None, :] == targets_r[:, None]
        target_r = jnp.sum(jnp.where(is_target_rv, logits_rv, 0.0), axis=1)
        ce_b = ce_b + _by_sequence(weights_r * (lse_r - target_r), batch)
        z_b = z_b + _by_sequence(weights_r * jnp.square(lse_r), batch)
        if not with_gradients:
            return (ce_b, z_b, None), None
        scale_r = weights_r * (1.0 + 2.0 * z_loss * lse_r)
        dlogits_rv = jnp.exp(logits_rv - lse_r[:, None]) * scale_r[:, None]
        dlogits_rv = dlogits_rv - jnp.where(is_target_rv, weights_r[:, None], 0.0)
        dlogits_rv = dlogits_rv.astype(x_rd.dtype)
        dx_rd = jnp.dot(dlogits_rv, kernel_vd, preferred_element_type=jnp.float32)
        x_dr = products.transposed(x_rd)
        dkernel_dv += jnp.dot(x_dr, dlogits_rv, preferred_element_type=jnp.float32)
        return (ce_b, z_b, dkernel_dv), dx_rd.astype(x_rd.dtype)

    zero_b = jnp.zeros(batch, jnp.float32)
    start = zero_b, zero_b, jnp.zeros(kernel_dv.shape, jnp.float32) if with_gradients else None
    inputs = (x_btd, targets_bt, weights_bt)
    (ce_b, z_b, dkernel_dv), dx_btd = _over_chunks(add_chunk, start, inputs, chunk)
    sums = jnp.sum(ce_b + z_loss * z_b), ce_b, z_b
    if dkernel_dv is None:
        return sums, None
    dpart_dv = spread.scatter(dkernel_dv.astype(reduce_dtype))
    return sums, (dx_btd, dpart_dv.astype(part_dv.dtype))


def _chunked_backward(*arguments):
    (dx_btd, dkernel_dv), cotangents = arguments[-2:]
    scale = cotangents[0]  # the objective's; the reported sums carry none
    dx_btd = (dx_btd * scale).astype(dx_btd.dtype)
    return dx_btd, (dkernel_dv * scale).astype(dkernel_dv.dtype), None, None


_chunked = jax.custom_vjp(_chunked_sums, nondiff_argnums=(4, 5, 6, 7, 8))
_chunked.defvjp(_chunked_forward, _chunked_backward)


def _by_sequence(values_r: jax.Array, batch: int) -> jax.Array:
    """[b * c] -> sums [b]."""
    return jnp.sum(values_r.reshape(batch, -1), axis=1)


def _over_chunks(body, carry, arrays, chunk):
    """Folds `body` over chunks of axis 1, each as rows [b * c, ...]; joins its outputs again.

    Whole chunks go through one `scan`; what is left of a length that `chunk` does not divide takes
    one more call, so that no position is padded.
    """
    batch, length = arrays[0].shape[:2]
    seam = length - length % chunk
    pieces = []
    if seam:
        carry, out = jax.lax.scan(body, carry, tuple(_chunks(a[:, :seam], chunk) for a in arrays))
        pieces.append(out)
    if seam < length:
        carry, out = body(carry, tuple(_chunks(a[:, seam:], length - seam)[0] for a in arrays))
        pieces.append(jax.tree.map(lambda a: a[None], out))

    def join(*pieces: jax.Array) -> jax.Array:
        return jnp.concatenate([_joined(piece, batch) for piece in pieces], axis=1)

    return carry, jax.tree.map(join, *pieces)  # None stays None


def _chunks(a: jax.Array, size: int) -> jax.Array:
    """[b, t, ...] -> [t / size, b * size, ...]."""
    chunks = jnp.moveaxis(a.reshape(a.shape[0], -1, size, *a.shape[2:]), 1, 0)
    return chunks.reshape(chunks.shape[0], -1, *a.shape[2:])


def _joined(chunks: jax.Array, batch: int) -> jax.Array:
    """[n, b * size, d] -> [b, n * size, d]."""
    num_chunks, _, width = chunks.shape
    pieces = jnp.moveaxis(chunks.reshape(num_chunks, batch, -1, width), 0, 1)
    return pieces.reshape(batch, -1, width)
