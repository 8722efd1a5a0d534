"""Self-attention behind one function; the kernels lie in `attention_kernels`.

Every kernel equals the formula softmax(q k^T / sqrt(h)) v over the positions that the mask lets
through, softmax in float32.

Shapes: b batch, t query positions, s key positions, n query heads, m key/value heads (n is a
multiple of m), h head size.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Primitive

from jaxpretrain.config.errors import InputError
from jaxpretrain.models import attention_kernels
from jaxpretrain.models.choices import AttentionChoice, AttentionKernel
from jaxpretrain.models.contract import Shard, unsharded
from jaxpretrain.models.masks import Mask


def resolve_kernel(
    choice: AttentionChoice, platform: str, dtype: str, *, documents: bool = False
) -> AttentionKernel:
    """Returns the kernel that `choice` means on `platform` ("cpu", "gpu", "tpu").

    `documents` is true where attention stays inside documents. Raises InputError for a kernel that
    cannot run there.
    """
    on_nvidia = platform in ("gpu", "cuda") and dtype == "bfloat16"
    if choice == "cudnn" and not on_nvidia:
        raise InputError(
            f"model.attention=cudnn needs an NVIDIA GPU and model.dtype=bfloat16; here are "
            f"{platform} and {dtype}"
        )
    if choice == "cudnn" and documents:
        raise InputError(
            "model.attention=cudnn cannot stay inside documents (model.document_end); "
            "use model.attention=auto"
        )
    if choice == "splash" and platform != "tpu":
        raise InputError(f"model.attention=splash needs a TPU; here is {platform}")
    if choice != "auto":
        return choice
    if platform == "tpu":
        return "splash"
    if on_nvidia and not documents:
        return "cudnn"
    # On CPUs, products of bfloat16 blocks and their transposes take longer than those of float32.
    return "xla_blocks_float32" if (platform, dtype) == ("cpu", "bfloat16") else "xla_blocks"


def attention(
    q_btnh: jax.Array,
    k_btmh: jax.Array,
    v_btmh: jax.Array,
    mask: Mask,
    *,
    kernel: AttentionKernel,
    shard: Shard = unsharded,
) -> jax.Array:
    """Returns the output of attention, [b, t, n, h] like the queries.

    Query head i uses key/value head i // (n // m). Windows and branches need a causal mask, and
    document numbers are not negative. The kernel is from `resolve_kernel`; cuDNN and splash cannot
    run branches, so that xla_blocks takes their place. `shard` runs kernels that XLA cannot divide.
    """
    if not mask.causal and not (mask.window is None and mask.branches is None):
        raise ValueError("windows and branches look back, so they need causal attention")
    if mask.branches is not None and kernel in ("cudnn", "splash"):
        kernel = "xla_blocks"
    if kernel == "cudnn":
        return attention_kernels.cudnn(q_btnh, k_btmh, v_btmh, mask, shard)
    if kernel == "splash":
        return attention_kernels.splash(q_btnh, k_btmh, v_btmh, mask, shard)
    if kernel == "xla":
        out_btnh = attention_kernels.plain(q_btnh, k_btmh, v_btmh, mask)
    else:
        dtype = jnp.float32 if kernel == "xla_blocks_float32" else q_btnh.dtype
        q, k, v = (x.astype(dtype) for x in (q_btnh, k_btmh, v_btmh))
        out_btnh = attention_kernels.blocks(q, k, v, mask).astype(q_btnh.dtype)
    return checkpoint_name(out_btnh, "attention")


def attend_cached(
    q_btnh: jax.Array,
    k_bmsh: jax.Array,
    v_bmsh: jax.Array,
    visible_bts: jax.Array,
    *,
    kernel: AttentionKernel,
) -> jax.Array:
    """Returns attention of few positions to cached keys and values, in the dtype of `kernel`."""
    dtype = jnp.float32 if kernel == "xla_blocks_float32" else q_btnh.dtype
    q, k, v = (x.astype(dtype) for x in (q_btnh, k_bmsh, v_bmsh))
    return attention_kernels.cached(q, k, v, visible_bts).astype(q_btnh.dtype)


def keep_attention(primitive: Primitive, *_: object, **params: object) -> bool:
    """Returns true, as a policy for `jax.checkpoint`, for outputs of attention, which are kept.

    The backward pass of cuDNN and splash also reads the softmax sums, which their kernels return
    beside the output. All outputs of the kernel are kept: otherwise it would run twice.
    """
    is_output = primitive.name == "name" and params["name"] == "attention"
    return is_output or primitive.name.startswith("dot_product_attention_fwd")
