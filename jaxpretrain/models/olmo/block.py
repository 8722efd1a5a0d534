"""One layer of the OLMo decoder: what it computes, and what it costs.

Shapes: b batch, t positions, d model width, n query heads, m key/value heads, h head size,
f inner width.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpretrain.models import masks
from jaxpretrain.models.choices import AttentionKernel, RematPolicy
from jaxpretrain.models.contract import Constrain
from jaxpretrain.models.costs import Blocks
from jaxpretrain.models.layers import Linear, Norm, Precision, RMSNorm, multiply
from jaxpretrain.models.olmo.config import DecoderConfig
from jaxpretrain.models.olmo.rotary import rotate

RopeTable = tuple[jax.Array, jax.Array]
"""The (sin, cos) of positions."""


Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, object]]
"""A function of rotated q [b, t, n, h] and k, v [b, t, m, h] that returns (the output of attention,
like q; what the caller wants to keep of them)."""


def make_norm(config: DecoderConfig, axis: str = "norm", name: str | None = None) -> Norm:
    """Returns a norm over the logical axis `axis`."""
    return Norm(config.norm, axis, jnp.dtype(config.dtype), name=name)


def block_costs(
    config: DecoderConfig, num_tokens: int, kernel: AttentionKernel, remat: RematPolicy
) -> Blocks:
    """Returns the costs of all layers for one example."""
    c, windows = config, config.windows
    itemsize = jnp.dtype(c.dtype).itemsize
    normed = 2 * c.d_model + (c.d_model + c.kv_width) * c.qk_norm

    def mean_pairs(causal: bool) -> float:
        pairs = sum(masks.num_visible_pairs(num_tokens, window, causal) for window in windows)
        return pairs / len(windows)

    return Blocks(
        num_layers=c.num_layers,
        num_tokens=num_tokens,
        visible_pairs=mean_pairs(causal=True),
        all_pairs=mean_pairs(causal=False),
        d_model=c.d_model,
        kv_width=c.kv_width,
        d_ff=c.d_ff,
        num_heads=c.num_heads,
        num_mlp_kernels=3,
        # Twice in float32; RMSNorm also rounds, before or after it scales.
        norm_bytes=normed * (8 + itemsize * isinstance(c.norm, RMSNorm)),
        inner_bytes=5 * 4 * c.d_ff,
        norm_after=c.norm_position == "after",
        query_chunk=None,
        kernel=kernel,
        remat=remat,
        scanned=c.scan_layers,
        itemsize=itemsize,
        stream_itemsize=jnp.dtype(c.residual_dtype or c.dtype).itemsize,
    )


class Block(nn.Module):
    """One layer: x += attention(x); x += mlp(x), with norms before or after as configured."""

    config: DecoderConfig
    precision: Precision
    constrain: Constrain
    layer: jax.Array | int = 0  # position from the bottom; only initialisation looks at it

    @nn.compact
    def __call__(
        self, x_btd: jax.Array, rope: RopeTable, attend: Attend
    ) -> tuple[jax.Array, object]:
        """Returns (residual stream [b, t, d], what `attend` keeps)."""
        attention_norm = make_norm(self.config, name="attention_norm")
        mlp_norm = make_norm(self.config, name="mlp_norm")
        if self.config.norm_position == "before":
            out_btd, kept = self._attention(attention_norm(x_btd), rope, attend)
            x_btd = x_btd + self._branch(out_btd)
            x_btd = x_btd + self._branch(self._mlp(mlp_norm(x_btd)))
        else:
            out_btd, kept = self._attention(x_btd, rope, attend)
            x_btd = x_btd + self._branch(attention_norm(out_btd))
            x_btd = x_btd + self._branch(mlp_norm(self._mlp(x_btd)))
        return self.constrain(x_btd, ("batch", None, None)), kept

    def _branch(self, x_btd: jax.Array) -> jax.Array:
        """Returns what a branch adds to the residual stream."""
        return multiply(x_btd, self.config.growth.branch)

    def _attention(
        self, x_btd: jax.Array, rope: RopeTable, attend: Attend
    ) -> tuple[jax.Array, object]:
        c = self.config
        b, t, d = x_btd.shape
        q = self._linear("query", d, ("embed", "heads"))(x_btd)
        k = self._linear("key", c.kv_width, ("embed", "heads"))(x_btd)
        v = self._linear("value", c.kv_width, ("embed", "heads"))(x_btd)
        if c.clip_qkv is not None:
            q, k, v = (jnp.clip(a, -c.clip_qkv, c.clip_qkv) for a in (q, k, v))
        if c.qk_norm:
            q = make_norm(c, "heads", "query_norm")(q)
            k = make_norm(c, "heads", "key_norm")(k)
        q_btnh, k_btmh, v_btmh = (a.reshape(b, t, -1, c.head_dim) for a in (q, k, v))
        q_btnh, k_btmh = rotate(q_btnh, rope), rotate(k_btmh, rope)
        split = ("batch", None, "heads", None)
        q_btnh, k_btmh, v_btmh = (self.constrain(a, split) for a in (q_btnh, k_btmh, v_btmh))
        out_btnh, kept = attend(q_btnh, k_btmh, v_btmh)
        return self._linear("output", d, ("heads", "embed"))(out_btnh.reshape(b, t, d)), kept

    def _mlp(self, x_btd: jax.Array) -> jax.Array:
        gate_btf = self._linear("gate", self.config.d_ff, ("embed", "mlp"))(x_btd)
        up_btf = self._linear("up", self.config.d_ff, ("embed", "mlp"))(x_btd)
        gate32_btf, up32_btf = gate_btf.astype(jnp.float32), up_btf.astype(jnp.float32)
        hidden_btf = (nn.silu(gate32_btf) * up32_btf).astype(gate_btf.dtype)
        hidden_btf = self.constrain(hidden_btf, ("batch", None, "mlp"))
        return self._linear("down", x_btd.shape[-1], ("mlp", "embed"))(hidden_btf)

    def _linear(self, name: str, features: int, axes: tuple[str, str]) -> Linear:
        init = self.config.initializer(name, self.layer)
        return Linear(features, axes, self.precision, init, name=name)
