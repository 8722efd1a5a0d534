"""Self-attention behind one function; the kernels lie in `attention_xla` and `attention_fused`.

Every kernel equals the plain formula (`attention_xla.plain`): softmax(q k^T / sqrt(h)) v over the
positions that the mask lets through, softmax in float32.

Shapes: b batch, t query positions, s key positions, n query heads, m key/value heads (n is a
multiple of m), h head size.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxpretrain.config.errors import InputError
from jaxpretrain.models import attention_fused, attention_xla
from jaxpretrain.models.choices import AttentionChoice, AttentionKernel
from jaxpretrain.models.contract import Branches, Shard, unsharded
from jaxpretrain.models.masks import Mask


def resolve_kernel(
    choice: AttentionChoice, platform: str, dtype: str, *, documents: bool = False
) -> AttentionKernel:
    """The kernel that `choice` means on `platform` ("cpu", "gpu", "tpu"), for start-up to print.

    `documents` says that attention is to stay inside documents.

    Raises:
      InputError: a kernel is asked for where it cannot run.
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
    *,
    kernel: AttentionKernel,
    window: int | None = None,
    causal: bool = True,
    documents_bt: jax.Array | None = None,
    branches: Branches | None = None,
    shard: Shard = unsharded,
) -> jax.Array:
    """Attention, [b, t, n, h] like `q_btnh`.

    Args:
      q_btnh: queries.
      k_btmh: keys; query head i uses key/value head i // (n // m).
      v_btmh: values.
      kernel: implementation, as `resolve_kernel` returns it. Branches are beyond cuDNN and splash:
        with them, xla_blocks takes their place.
      window: positions a query sees, itself included; None for all earlier ones.
      causal: queries see no later positions. False: they see all, and there is no window.
      documents_bt: int32, not negative, the document of each position: queries see only their own.
      branches: queries see only their stem and their own branch; needs causal attention.
      shard: runs kernels that XLA cannot divide among devices.
    """
    if not causal and not (window is None and branches is None):
        raise ValueError("windows and branches look back, so they need causal attention")
    mask = Mask(causal, window, documents_bt, branches)
    if branches is not None and kernel in ("cudnn", "splash"):
        kernel = "xla_blocks"
    if kernel == "cudnn":
        return attention_fused.cudnn(q_btnh, k_btmh, v_btmh, mask)
    if kernel == "splash":
        return attention_fused.splash(q_btnh, k_btmh, v_btmh, mask, shard)
    if kernel == "xla":
        out_btnh = attention_xla.plain(q_btnh, k_btmh, v_btmh, mask)
    else:
        dtype = jnp.float32 if kernel == "xla_blocks_float32" else q_btnh.dtype
        q, k, v = (x.astype(dtype) for x in (q_btnh, k_btmh, v_btmh))
        out_btnh = attention_xla.blocks(q, k, v, mask).astype(q_btnh.dtype)
    return checkpoint_name(out_btnh, "attention")


def attend_cached(
    q_btnh: jax.Array,
    k_bmsh: jax.Array,
    v_bmsh: jax.Array,
    visible_bts: jax.Array,
    *,
    kernel: AttentionKernel,
) -> jax.Array:
    """Attention of few positions to keys and values that were kept, [b, t, n, h] like `q_btnh`.

    It is in plain operations; `kernel` is what computes the rest, and tells in which dtype.
    """
    dtype = jnp.float32 if kernel == "xla_blocks_float32" else q_btnh.dtype
    q, k, v = (x.astype(dtype) for x in (q_btnh, k_bmsh, v_bmsh))
    return attention_xla.cached(q, k, v, visible_bts).astype(q_btnh.dtype)


def keep_attention(primitive: Any, *_: Any, **params: Any) -> bool:
    """A policy for `jax.checkpoint` that keeps the output of attention and recomputes the rest.

    The backward pass of cuDNN and splash reads the softmax sums too, which their kernels give along
    with the output: all that the kernel gives is kept, else it would run twice.
    """
    is_output = primitive.name == "name" and params["name"] == "attention"
    return is_output or primitive.name.startswith("dot_product_attention_fwd")
