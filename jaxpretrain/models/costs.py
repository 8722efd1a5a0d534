"""What a transformer costs, in closed form: arithmetic by part, and the activations in memory.

Planning reads these without a compiler and within microseconds; tests hold them against what JAX
traces. Parts of the arithmetic: `projections` (queries, keys, values and the way out), `attention`
(its two products of all pairs), `mlp`, and the ends of a model by their names.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

from jaxpretrain.models.choices import AttentionKernel, RematPolicy

_FUSED = ("cudnn", "splash")
"""Kernels in which the pairs never exist in memory: they compute scores again for gradients."""


class Bytes(NamedTuple):
    """Activations of one example."""

    whole: float = 0.0
    """On every device that works on the example."""
    split: float = 0.0
    """Divided among them by the mesh axis `tensor`: heads, inner width, vocabulary."""

    def on_device(self, num_tensor: int) -> float:
        """What one of `num_tensor` devices holds."""
        return self.whole + self.split / num_tensor


@dataclass(frozen=True)
class Blocks:
    """Equal layers, for one example of `num_tokens` tokens."""

    num_layers: int
    num_tokens: int
    visible_pairs: float  # of query and key that the mask lets through; a mean over the layers
    all_pairs: float  # with those that causality hides
    d_model: int
    kv_width: int  # channels of all keys
    d_ff: int
    num_heads: int
    num_mlp_kernels: int  # 3 with a gate, 2 without
    norm_bytes: int  # of a token, kept by norms when nothing is recomputed
    inner_bytes: int  # of a token, kept by the MLP's non-linearity when nothing is recomputed
    norm_after: bool  # norms take the outputs of attention and MLP
    query_chunk: int | None  # queries whose pairs exist at once, again for gradients; None: all
    kernel: AttentionKernel
    remat: RematPolicy
    scanned: bool
    itemsize: int  # bytes of the compute dtype
    stream_itemsize: int  # bytes of the residual stream's

    @property
    def computed_pairs(self) -> float:
        """What the kernel computes: all but the plain formula leave out what is hidden."""
        return self.all_pairs if self.kernel == "xla" else self.visible_pairs

    @property
    def stream(self) -> Bytes:
        """The residual stream, once for each layer."""
        return self._of_layers(Bytes(self.d_model * self.stream_itemsize))

    @property
    def kept(self) -> Bytes:
        """From the forward to the backward pass, by all layers.

        Scanned layers that recompute nothing keep all that JAX's gradients read, float32 of norms
        and non-linearities included. Unrolled, XLA computes these again from its products.
        """
        rows = self.d_model * self.itemsize
        heads = 2 * (self.d_model + self.kv_width) * self.itemsize  # q, k, v and what they find
        sums = 4 * self.num_heads if self.kernel in _FUSED else 0
        inner = self.d_ff * self.itemsize
        pairs = 0.0 if self.query_chunk else self._pair_bytes / self.num_tokens
        if self.remat == "full":
            return self.stream
        if self.remat == "attention":
            kept = Bytes(0, rows + sums)
        elif self.remat == "dots":
            products = heads + sums + (self.num_mlp_kernels - 1) * inner
            kept = Bytes(rows * (2 if self.norm_after else 1), products)
        elif self.scanned:
            split = heads + sums + inner + self.inner_bytes + pairs
            return self._of_layers(Bytes(2 * rows + self.norm_bytes, split))
        else:
            kept = Bytes(2 * rows, heads + sums + self.num_mlp_kernels * inner + pairs)
        return total((self.stream, self._of_layers(kept)))

    @property
    def working(self) -> Bytes:
        """In the backward pass of one layer, on top of what is kept.

        Seven arrays as wide as the model on each device (the stream, inputs of products, their
        gradients), five of heads, the MLP's inner ones with their gradients, and what of attention
        exists for all pairs. XLA fuses the float32 of norms and non-linearities away.
        """
        inner = (self.num_mlp_kernels + 2) * self.d_ff
        values = self.num_tokens * self.itemsize
        return Bytes(
            values * 7 * self.d_model, values * (5 * self.d_model + inner) + 2 * self._pair_bytes
        )

    @property
    def traffic(self) -> Bytes:
        """To and from memory in one forward pass, between matrix products, of all layers.

        Each norm and each addition to the residual stream reads and writes it; rotation reads and
        writes queries and keys; the non-linearity reads its inputs and writes its output.
        """
        split = 2 * (self.d_model + self.kv_width) + self.num_mlp_kernels * self.d_ff
        whole = 4 * self.d_model * self.itemsize + 4 * self.d_model * self.stream_itemsize
        return self._of_layers(Bytes(whole, split * self.itemsize))

    def flops(self, num_pairs: float) -> dict[str, float]:
        """Of forward and backward, by part: 6 per weight and token, 12 per pair and channel."""
        per_weight = 6.0 * self.num_layers * self.num_tokens
        return {
            "projections": per_weight * 2 * self.d_model * (self.d_model + self.kv_width),
            "attention": 12.0 * self.num_layers * num_pairs * self.d_model,
            "mlp": per_weight * self.num_mlp_kernels * self.d_model * self.d_ff,
        }

    def executed_flops(self) -> dict[str, float]:
        """Of the pairs that the kernel computes; what the backward pass computes again included.

        That is, of attention, in `attention`: scores by fused kernels, all by chunks of queries,
        and what the policy drops. Else, in `recomputation`: as far as the policy drops it, the last
        product of the MLP only when a norm reads it.
        """
        flops = self.flops(self.computed_pairs)
        scores, forward = flops["attention"] / 6, flops["attention"] / 3
        own = scores if self.kernel in _FUSED else forward if self.query_chunk else 0.0
        again = {"none": own, "full": forward + own}.get(self.remat, own or scores)
        needed = 1.0 if self.norm_after else 1.0 - 1.0 / self.num_mlp_kernels
        drops = self.remat in ("attention", "full")
        linear = (flops["projections"] + needed * flops["mlp"]) / 3 if drops else 0.0
        return flops | {"attention": flops["attention"] + again, "recomputation": linear}

    @property
    def _pair_bytes(self) -> float:
        """In one layer, of the pairs that exist at once: weights in float32 and rounded."""
        if self.kernel in _FUSED:
            return 0.0
        chunk = self.num_tokens * (self.query_chunk or math.inf)
        rounded = 4 if self.kernel == "xla_blocks_float32" else self.itemsize
        return min(chunk, self.computed_pairs) * self.num_heads * (4 + rounded)

    def _of_layers(self, of_token: Bytes) -> Bytes:
        return Bytes(*(self.num_layers * self.num_tokens * value for value in of_token))


@dataclass(frozen=True)
class Costs:
    """What one example costs in one training step."""

    blocks: tuple[Blocks, ...]
    """The stacks of layers, in their order."""
    ends: dict[str, float]
    """FLOPs before, between and after the stacks, forward and backward, by part."""
    ends_kept: Bytes
    """Activations kept outside of the layers."""
    loss: Bytes
    """On top of what is kept, while the loss and its gradient are computed."""
    loss_traffic: Bytes
    """To and from memory for the loss and its gradient."""

    @property
    def stream(self) -> Bytes:
        """The residual stream, once for each layer: what devices of the mesh axis `tensor` add up
        after attention, and again after the MLP.
        """
        return total(blocks.stream for blocks in self.blocks)

    @property
    def kept(self) -> Bytes:
        """From the forward to the backward pass."""
        return total((self.ends_kept, *(blocks.kept for blocks in self.blocks)))

    @property
    def working(self) -> Bytes:
        """On top of that, in the backward pass of the layer that needs most."""
        return max((blocks.working for blocks in self.blocks), key=sum)

    @property
    def traffic(self) -> Bytes:
        """To and from memory in the step, matrix products aside.

        Gradients take twice the forward pass, and once more what is recomputed; what is kept is
        written and read.
        """
        layers = [
            Bytes(*((3 if blocks.remat == "none" else 4) * value for value in blocks.traffic))
            for blocks in self.blocks
        ]
        return total((*layers, self.kept, self.kept, self.loss_traffic))

    def flops_by_part(self, *, causal: bool) -> dict[str, float]:
        """Forward and backward, as models are compared: nothing that is computed again.

        `causal=False` counts all pairs of positions in attention, `causal=True` those that the mask
        lets through.
        """
        return self._by_part(
            blocks.flops(blocks.visible_pairs if causal else blocks.all_pairs)
            for blocks in self.blocks
        )

    def executed_flops(self) -> dict[str, float]:
        """What devices execute; `recomputation` is the linear maps that are computed again."""
        return self._by_part(blocks.executed_flops() for blocks in self.blocks)

    def _by_part(self, stacks: Iterable[dict[str, float]]) -> dict[str, float]:
        stacks = list(stacks)
        return {part: sum(flops[part] for flops in stacks) for part in stacks[0]} | self.ends


def total(parts: Iterable[Bytes]) -> Bytes:
    """All of them."""
    return reduce(lambda a, b: Bytes(a.whole + b.whole, a.split + b.split), parts, Bytes())
