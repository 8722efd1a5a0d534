"""The costs of a transformer in closed form: arithmetic by part, and activations in memory.

Planning reads them without a compiler and within microseconds; tests compare them with JAX's
traces. The parts of the arithmetic are `projections` (queries, keys, values and output),
`attention` (its two products of all pairs), `mlp`, and the ends of a model by their names.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

from jaxpretrain.models.choices import AttentionKernel, RematPolicy

_FUSED = ("cudnn", "splash")
"""The kernels that never hold the pairs in memory: they compute scores again for gradients."""


_PAIR_BYTES = 75.0
"""The bytes that a pair of query and key moves in a step, as compiled steps show them."""


class Bytes(NamedTuple):
    """The bytes of activations of one example."""

    whole: float = 0.0
    """The bytes that every device holds that works on the example."""
    split: float = 0.0
    """The bytes that the mesh axis `tensor` divides among them: heads, inner width, vocabulary."""

    def on_device(self, num_tensor: int) -> float:
        """Returns the bytes on one of `num_tensor` devices."""
        return self.whole + self.split / num_tensor


@dataclass(frozen=True)
class Blocks:
    """A stack of equal layers, for one example of `num_tokens` tokens."""

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
        """The pairs that the kernel computes: only the plain formula includes hidden ones."""
        return self.all_pairs if self.kernel == "xla" else self.visible_pairs

    @property
    def stream(self) -> Bytes:
        """The bytes of the residual stream, once for each layer."""
        return self._of_layers(Bytes(self.d_model * self.stream_itemsize))

    @property
    def kept(self) -> Bytes:
        """The bytes that all layers keep from the forward to the backward pass.

        Scanned layers that recompute nothing keep everything that JAX's gradients read, also the
        float32 of norms and non-linearities. In unrolled layers, XLA computes these again.
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
        """The bytes in the backward pass of one layer, beside the kept ones.

        They are seven arrays as wide as the model on each device (the stream, inputs of products,
        their gradients), five of heads, the MLP's inner ones with their gradients, and the arrays
        of attention over all pairs. XLA fuses the float32 of norms and non-linearities away.
        """
        inner = (self.num_mlp_kernels + 2) * self.d_ff
        values = self.num_tokens * self.itemsize
        split = values * (5 * self.d_model + inner) + 2 * self._pair_bytes
        return Bytes(values * 7 * self.d_model, split)

    @property
    def traffic(self) -> Bytes:
        """The bytes to and from memory in one forward pass of all layers, without matrix products.

        Each norm and each addition to the residual stream reads and writes it; rotation reads and
        writes queries and keys; the non-linearity reads its inputs and writes its output.
        """
        split = 2 * (self.d_model + self.kv_width) + self.num_mlp_kernels * self.d_ff
        whole = 4 * self.d_model * self.itemsize + 4 * self.d_model * self.stream_itemsize
        return self._of_layers(Bytes(whole, split * self.itemsize))

    @property
    def pair_traffic(self) -> Bytes:
        """The bytes to and from memory for all pairs in a step; fused kernels have none."""
        if self.kernel in _FUSED:
            return Bytes()
        return Bytes(split=_PAIR_BYTES * self.num_layers * self.computed_pairs * self.num_heads)

    def flops(self, num_pairs: float) -> dict[str, float]:
        """Returns FLOPs by part: 6 per weight and token, 12 per pair and channel."""
        per_weight = 6.0 * self.num_layers * self.num_tokens
        return {
            "projections": per_weight * 2 * self.d_model * (self.d_model + self.kv_width),
            "attention": 12.0 * self.num_layers * num_pairs * self.d_model,
            "mlp": per_weight * self.num_mlp_kernels * self.d_model * self.d_ff,
        }

    def executed_flops(self) -> dict[str, float]:
        """Returns the FLOPs that devices execute, by part, with those of recomputation.

        `attention` includes its own recomputation: scores in fused kernels, everything in chunks of
        queries, and the products that the policy drops. `recomputation` is the linear maps that the
        policy drops; the last product of the MLP is among them only when a norm reads it.
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
        """The bytes of the pairs that exist at once in one layer, in float32 and rounded."""
        if self.kernel in _FUSED:
            return 0.0
        chunk = self.num_tokens * (self.query_chunk or math.inf)
        rounded = 4 if self.kernel == "xla_blocks_float32" else self.itemsize
        return min(chunk, self.computed_pairs) * self.num_heads * (4 + rounded)

    def _of_layers(self, of_token: Bytes) -> Bytes:
        return Bytes(*(self.num_layers * self.num_tokens * value for value in of_token))


@dataclass(frozen=True)
class Costs:
    """The costs of one example in one training step."""

    blocks: tuple[Blocks, ...]
    """The stacks of layers in their order."""
    ends: dict[str, float]
    """The FLOPs before, between and after the stacks, forward and backward, by part."""
    ends_kept: Bytes
    """The bytes of activations that are kept outside of the layers."""
    loss: Bytes
    """The bytes beside the kept ones while the loss and its gradient are computed."""
    loss_traffic: Bytes
    """The bytes to and from memory for the loss and its gradient."""

    @property
    def stream(self) -> Bytes:
        """The bytes of the residual stream, which the mesh axis `tensor` adds up twice a layer."""
        return total(blocks.stream for blocks in self.blocks)

    @property
    def kept(self) -> Bytes:
        """The bytes that are kept from the forward to the backward pass."""
        return total((self.ends_kept, *(blocks.kept for blocks in self.blocks)))

    @property
    def working(self) -> Bytes:
        """The bytes beside the kept ones in the backward pass of the largest layer."""
        return max((blocks.working for blocks in self.blocks), key=sum)

    @property
    def traffic(self) -> Bytes:
        """The bytes to and from memory in a step, without matrix products.

        Gradients take twice those of the forward pass, and recomputation once more. What unrolled
        layers keep, products write and read. Scanned layers fill their stacks, copy them once, and
        write and read each layer's part by kernels of their own.
        """
        layers = [
            Bytes(*((3 if blocks.remat == "none" else 4) * value for value in blocks.traffic))
            for blocks in self.blocks
        ]
        stacks = [blocks.kept for blocks in self.blocks if blocks.scanned]
        return total((*layers, *4 * stacks, self.loss_traffic))

    @property
    def pair_traffic(self) -> Bytes:
        """The bytes to and from memory for pairs of query and key, where memory has to hold them.

        Each is written and read several times, in float32 and rounded: as a score, as a weight and
        as the gradients of both.
        """
        return total(blocks.pair_traffic for blocks in self.blocks)

    def flops_by_part(self, *, causal: bool) -> dict[str, float]:
        """Returns the FLOPs by part without recomputation; `causal` as in `flops_per_example`."""
        return self._by_part(
            blocks.flops(blocks.visible_pairs if causal else blocks.all_pairs)
            for blocks in self.blocks
        )

    def executed_flops(self) -> dict[str, float]:
        """Returns the FLOPs that devices execute, by part (see `Blocks.executed_flops`)."""
        return self._by_part(blocks.executed_flops() for blocks in self.blocks)

    def _by_part(self, stacks: Iterable[dict[str, float]]) -> dict[str, float]:
        stacks = list(stacks)
        return {part: sum(flops[part] for flops in stacks) for part in stacks[0]} | self.ends


def total(parts: Iterable[Bytes]) -> Bytes:
    """Returns the sum of all parts."""
    return reduce(lambda a, b: Bytes(a.whole + b.whole, a.split + b.split), parts, Bytes())
