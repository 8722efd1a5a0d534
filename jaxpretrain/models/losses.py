"""Cross-entropy over a large vocabulary, in chunks: the full logits never exist.

Shapes: b batch, t positions, r rows of one chunk (batch times positions), d model width,
v vocabulary (padded).
"""

import jax
import jax.numpy as jnp

from jaxpretrain.models.matmul import PLAIN, Products

CHUNK = 512
"""The positions of each sequence whose logits exist at once in training."""


def cross_entropy(
    x_btd: jax.Array,
    kernel_dv: jax.Array,
    targets_bt: jax.Array,
    weights_bt: jax.Array,
    *,
    z_loss: float = 0.0,
    chunk: int = CHUNK,
    products: Products = PLAIN,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns weighted sums of the cross-entropy and of z = logsumexp(logits)^2 over positions.

    Only the first result, the objective sum(ce + z_loss * z), carries a gradient, and only to
    `x_btd` and `kernel_dv`. The gradient of each chunk's logits is taken while they exist (three
    matrix products a chunk; recomputing them would take four). Products have the dtype of `x_btd`,
    sums are in float32.

    Args:
      x_btd: The final hidden states.
      kernel_dv: The output projection, of the same dtype as `x_btd`.
      targets_bt: The token ids to predict, integers in [0, v).
      weights_bt: The float32 weight of each position; 0 leaves it out.
      z_loss: The weight of z (PaLM, section 5).
      chunk: The positions of each sequence whose logits exist at once.
      products: The way in which matrices are multiplied.

    Returns:
      The objective, a scalar; cross-entropy and z of each sequence, [b]; float32, in nats.
    """
    arrays = (x_btd, kernel_dv, targets_bt, weights_bt)
    objective, ce_b, z_b = _chunked(*arrays, z_loss, chunk, products)
    return objective, jax.lax.stop_gradient(ce_b), jax.lax.stop_gradient(z_b)


def _chunked_sums(x_btd, kernel_dv, targets_bt, weights_bt, z_loss, chunk, products):
    del products  # only gradients transpose

    def add_chunk(sums, inputs):
        x_rd, targets_r, weights_r = inputs
        ce_r, z_r, _, _ = _chunk_losses(x_rd, targets_r, weights_r, kernel_dv)
        return (sums[0] + _by_sequence(ce_r, batch), sums[1] + _by_sequence(z_r, batch)), None

    batch = x_btd.shape[0]
    zero_b = jnp.zeros(batch, jnp.float32)
    inputs = (x_btd, targets_bt, weights_bt)
    (ce_b, z_b), _ = _over_chunks(add_chunk, (zero_b, zero_b), inputs, chunk)
    return jnp.sum(ce_b + z_loss * z_b), ce_b, z_b


def _chunked_forward(x_btd, kernel_dv, targets_bt, weights_bt, z_loss, chunk, products):
    kernel_vd = products.transposed(kernel_dv)

    def add_chunk(carry, inputs):
        ce_b, z_b, dkernel_dv = carry
        x_rd, targets_r, weights_r = inputs
        ce_r, z_r, logits_rv, lse_r = _chunk_losses(x_rd, targets_r, weights_r, kernel_dv)
        ce_b, z_b = ce_b + _by_sequence(ce_r, batch), z_b + _by_sequence(z_r, batch)
        scale_r = weights_r * (1.0 + 2.0 * z_loss * lse_r)
        is_target_rv = jnp.arange(logits_rv.shape[1])[None, :] == targets_r[:, None]
        dlogits_rv = jnp.exp(logits_rv - lse_r[:, None]) * scale_r[:, None]
        dlogits_rv = (dlogits_rv - jnp.where(is_target_rv, weights_r[:, None], 0.0)).astype(
            x_rd.dtype
        )
        dx_rd = jnp.dot(dlogits_rv, kernel_vd, preferred_element_type=jnp.float32)
        x_dr = products.transposed(x_rd)
        dkernel_dv += jnp.dot(x_dr, dlogits_rv, preferred_element_type=jnp.float32)
        return (ce_b, z_b, dkernel_dv), dx_rd.astype(x_rd.dtype)

    batch = x_btd.shape[0]
    zero_b = jnp.zeros(batch, jnp.float32)
    start = (zero_b, zero_b, jnp.zeros(kernel_dv.shape, jnp.float32))
    inputs = (x_btd, targets_bt, weights_bt)
    (ce_b, z_b, dkernel_dv), dx_btd = _over_chunks(add_chunk, start, inputs, chunk)
    objective = jnp.sum(ce_b + z_loss * z_b)
    return (objective, ce_b, z_b), (dx_btd, dkernel_dv.astype(kernel_dv.dtype))


def _chunked_backward(z_loss, chunk, products, residuals, cotangents):
    del z_loss, chunk, products
    dx_btd, dkernel_dv = residuals
    scale = cotangents[0]  # the objective's; the reported sums carry none
    dx_btd = (dx_btd * scale).astype(dx_btd.dtype)
    return dx_btd, (dkernel_dv * scale).astype(dkernel_dv.dtype), None, None


_chunked = jax.custom_vjp(_chunked_sums, nondiff_argnums=(4, 5, 6))
_chunked.defvjp(_chunked_forward, _chunked_backward)


def _chunk_losses(x_rd, targets_r, weights_r, kernel_dv):
    logits_rv = jnp.einsum("rd,dv->rv", x_rd, kernel_dv, preferred_element_type=jnp.float32)
    lse_r = jax.nn.logsumexp(logits_rv, axis=1)
    target_r = jnp.take_along_axis(logits_rv, targets_r[:, None], axis=1)[:, 0]
    ce_r = weights_r * (lse_r - target_r)
    return ce_r, weights_r * jnp.square(lse_r), logits_rv, lse_r


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
        pieces.append(None if out is None else out[None])
    if pieces[0] is None:
        return carry, None
    joined = [_joined(piece, batch) for piece in pieces]
    return carry, jnp.concatenate(joined, axis=1)


def _chunks(a: jax.Array, size: int) -> jax.Array:
    """[b, t, ...] -> [t / size, b * size, ...]."""
    chunks = jnp.moveaxis(a.reshape(a.shape[0], -1, size, *a.shape[2:]), 1, 0)
    return chunks.reshape(chunks.shape[0], -1, *a.shape[2:])


def _joined(chunks: jax.Array, batch: int) -> jax.Array:
    """[n, b * size, d] -> [b, n * size, d]."""
    num_chunks, _, width = chunks.shape
    return jnp.moveaxis(chunks.reshape(num_chunks, batch, -1, width), 0, 1).reshape(
        batch, -1, width
    )
