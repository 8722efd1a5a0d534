"""One layer of the OLMo decoder: what it can be, how it starts, what it computes.

Shapes: b batch, t positions, d model width, n query heads, m key/value heads, h head size,
f inner width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpretrain.config.ranges import Between, Depth, Positive, Width
from jaxpretrain.models import layers, masks
from jaxpretrain.models.choices import AttentionKernel, NormRounding, RematPolicy
from jaxpretrain.models.contract import Constrain
from jaxpretrain.models.costs import Blocks
from jaxpretrain.models.matmul import Products
from jaxpretrain.models.olmo.rotary import rotate


@dataclass(frozen=True)
class Layers:
    """The layers of a decoder."""

    d_model: Width = 2048
    """Width of the residual stream."""
    num_layers: Depth = 16
    """Blocks."""
    num_heads: Width = 16
    """Query heads; d_model / num_heads is the head size."""
    num_kv_heads: Width | None = None
    """Key and value heads (grouped queries); none: as many as query heads."""
    d_ff: Width = 8192
    """Inner width of SwiGLU, one of its halves (OLMo's mlp_hidden_size counts both)."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """layernorm: without parameters (OLMo 1). rmsnorm: with a scale (OLMo 2 and 3)."""
    norm_epsilon: Annotated[float, Between(0, 1, "(]")] = 1e-5
    """Added to the variance or mean square."""
    norm_position: Literal["before", "after"] = "before"
    """before: the input of attention and MLP is normalised. after: their output (OLMo 2 and 3)."""
    norm_rounding: NormRounding = "before_scale"
    """When RMSNorm leaves float32: before_scale (OLMo's trainer) or after_scale (OLMo-core)."""
    qk_norm: bool = False
    """Normalise queries and keys over their full projected width, before the split into heads."""
    clip_qkv: Annotated[float, Positive] | None = None
    """Clamp queries, keys and values to +- this value."""
    init: Literal["normal", "mitchell", "full_megatron"] = "mitchell"
    """OLMo's initialisations: normal (all std init_std), mitchell (std by fan-in and depth, OLMo 1)
    and full_megatron (residual outputs scaled down by sqrt(2 layers))."""
    init_std: Annotated[float, Between(0, 100, "(]")] = 0.02
    """Standard deviation of normal and full_megatron."""
    init_cutoff: Annotated[float, Positive] | None = 3.0
    """Draws beyond this many standard deviations are redrawn; none: not cut."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of activations and matrix products; parameters and sums are float32."""
    residual_dtype: Literal["bfloat16", "float32"] | None = None
    """Dtype of the residual stream; none: as dtype. OLMo's trainer keeps float32 without FSDP."""

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.d_model // self.num_heads

    @property
    def kv_width(self) -> int:
        """Channels of all keys, or of all values."""
        return (self.num_kv_heads or self.num_heads) * self.head_dim

    def make_norm(self, axis: str = "norm", *, name: str | None = None) -> layers.Norm:
        """A norm over the logical axis `axis`."""
        dtype = jnp.dtype(self.dtype)
        return layers.Norm(self.norm, self.norm_epsilon, axis, dtype, self.norm_rounding, name=name)

    def costs(
        self,
        num_tokens: int,
        windows: tuple[int | None, ...],
        kernel: AttentionKernel,
        remat: RematPolicy,
        *,
        scanned: bool,
    ) -> Blocks:
        """What the layers cost for one example; `windows` are those of the layers in turn."""
        itemsize = jnp.dtype(self.dtype).itemsize
        normed = 2 * self.d_model + (self.d_model + self.kv_width) * self.qk_norm

        def pairs(causal: bool) -> float:
            return sum(masks.num_visible_pairs(num_tokens, w, causal) for w in windows)

        return Blocks(
            num_layers=self.num_layers,
            num_tokens=num_tokens,
            visible_pairs=pairs(causal=True) / len(windows),
            all_pairs=pairs(causal=False) / len(windows),
            d_model=self.d_model,
            kv_width=self.kv_width,
            d_ff=self.d_ff,
            num_heads=self.num_heads,
            num_mlp_kernels=3,
            # Twice in float32; RMSNorm also rounds, before or after it scales.
            norm_bytes=normed * (8 + itemsize * (self.norm == "rmsnorm")),
            inner_bytes=5 * 4 * self.d_ff,
            norm_after=self.norm_position == "after",
            query_chunk=None,
            kernel=kernel,
            remat=remat,
            scanned=scanned,
            itemsize=itemsize,
            stream_itemsize=jnp.dtype(self.residual_dtype or self.dtype).itemsize,
        )

    def initializer(self, name: str, layer: jax.Array | int = 0) -> layers.Initializer:
        """How the weight of that name starts, in the layer that has so many below it."""
        return layers.truncated_normal(self._init_std(name, layer), self.init_cutoff)

    def _init_std(self, name: str, layer: jax.Array | int) -> float | jax.Array:
        """As in OLMo's `olmo/initialization.py`."""
        if self.init == "normal":
            return self.init_std
        residual = name in ("output", "down")
        if self.init == "full_megatron":
            if name == "head":
                return self.d_model**-0.5
            return self.init_std / (2 * self.num_layers) ** 0.5 if residual else self.init_std
        fan_in = self.d_ff if name == "down" else self.d_model
        return (2 * fan_in * (layer + 1)) ** -0.5 if residual else fan_in**-0.5


Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]
"""(q [b, t, n, h], k and v [b, t, m, h], rotated) -> (what queries find, like q; what to keep)."""


class Block(nn.Module):
    """One layer: x += attention(x); x += mlp(x), with norms before or after as configured."""

    config: Layers
    products: Products
    constrain: Constrain
    layer: jax.Array | int = 0  # position from the bottom; only initialisation looks at it

    @nn.compact
    def __call__(
        self,
        x_btd: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        attend: Attend,
    ) -> tuple[jax.Array, Any]:
        """([b, t, d], what `attend` keeps); `rope` is the (sin, cos) table of the positions."""
        attention_norm = self.config.make_norm(name="attention_norm")
        mlp_norm = self.config.make_norm(name="mlp_norm")
        if self.config.norm_position == "before":
            out_btd, kept = self._attention(attention_norm(x_btd), rope, attend)
            x_btd = x_btd + out_btd
            x_btd = x_btd + self._mlp(mlp_norm(x_btd))
        else:
            out_btd, kept = self._attention(x_btd, rope, attend)
            x_btd = x_btd + attention_norm(out_btd)
            x_btd = x_btd + mlp_norm(self._mlp(x_btd))
        return self.constrain(x_btd, ("batch", None, None)), kept

    def _attention(
        self, x_btd: jax.Array, rope: tuple[jax.Array, jax.Array], attend: Attend
    ) -> tuple[jax.Array, Any]:
        c = self.config
        b, t, d = x_btd.shape
        q = self._linear("query", d, ("embed", "heads"))(x_btd)
        k = self._linear("key", c.kv_width, ("embed", "heads"))(x_btd)
        v = self._linear("value", c.kv_width, ("embed", "heads"))(x_btd)
        if c.clip_qkv is not None:
            q, k, v = (jnp.clip(a, -c.clip_qkv, c.clip_qkv) for a in (q, k, v))
        if c.qk_norm:
            q = c.make_norm("heads", name="query_norm")(q)
            k = c.make_norm("heads", name="key_norm")(k)
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

    def _linear(self, name: str, features: int, axes: tuple[str, str]) -> layers.Linear:
        init = self.config.initializer(name, self.layer)
        dtype = jnp.dtype(self.config.dtype)
        return layers.Linear(features, axes, init, dtype, self.products, name=name)
