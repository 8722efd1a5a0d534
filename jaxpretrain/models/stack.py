"""Stacks of equal blocks: one parameter layout for scanned and unrolled layers, names and signals.

Layers follow a pattern of P positions (a sliding-window pattern of four, say); the layers at one
position are stacked on a leading axis `layers`. Scanning folds over the stacks, unrolling indexes
them: the same parameters and the same sums, so one checkpoint serves both.

The stacks of a model lie below the name `blocks`: `blocks/<position>/query/kernel`, or
`encoder/blocks/<position>/query/kernel` where there are several towers. A quantity by layer ends
with the same name: `signals/grad_norm/encoder/blocks`.

The signals of a layer are its largest attention logit and the size of its output, computed from the
queries and keys of a block, outside of the attention kernels; float32 [layers] from the bottom.

Shapes: b batch, t query positions, s key positions, n query heads, m key/value heads, g = n / m
query heads that share a key, h head size, d width.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxpretrain.models.contract import Params
from jaxpretrain.models.masks import Mask

STACK = "blocks"
"""The name below which a stack of layers lies."""

X = TypeVar("X")
"""An array or a tree of them that goes from layer to layer."""

Seen = TypeVar("Seen")
"""An array or a tree of them that one layer shows."""


class Place(NamedTuple):
    """The place of a stacked parameter."""

    stack: str
    """The name of the stack, `blocks` or `encoder/blocks`."""
    position: int
    """The position in the pattern of layers."""
    part: str
    """The name within a layer, `query/kernel`."""


def is_stacked(name: str) -> bool:
    """Returns true for the name of a parameter or a signal whose first axis counts layers."""
    return STACK in name.split("/")


def place_of(name: str) -> Place | None:
    """Returns the place of the parameter of that name; None where it is in no stack."""
    if not is_stacked(name):
        return None
    tower, _, rest = f"/{name}".rpartition(f"/{STACK}/")
    position, _, part = rest.partition("/")
    return Place(f"{tower}/{STACK}".lstrip("/"), int(position), part)


def tower_of(signal: str) -> str:
    """Returns the tower in the name of a signal by layer: "encoder", or "" of the only tower."""
    return signal.split("/", 2)[2].removesuffix(STACK).rstrip("/")


def init_stack(
    init_layer: Callable[[jax.Array, jax.Array, int], Params],
    rng: jax.Array,
    num_layers: int,
    pattern: int,
) -> Params:
    """Returns {"0": stack, ..., "P-1": stack}; `init_layer(rng, layer, position)` makes one layer.

    `layer` counts from 0 over the whole model and is traced (depth-scaled initialisations use it).
    """
    rngs = jax.random.split(rng, num_layers)
    layers = jax.numpy.arange(num_layers)
    return {
        str(p): jax.vmap(lambda key, layer, p=p: init_layer(key, layer, p))(
            rngs[p::pattern], layers[p::pattern]
        )
        for p in range(pattern)
    }


def apply_stack(
    apply_layer: Callable[[X, Params, int], X], x: X, stacks: Params, *, scan: bool
) -> X:
    """Runs all layers in order; `apply_layer(x, params, position)` runs one."""
    pattern = len(stacks)

    def group(x: X, params: Params) -> X:
        for p in range(pattern):
            x = apply_layer(x, params[str(p)], p)
        return x

    if scan:
        return jax.lax.scan(lambda x, params: (group(x, params), None), x, stacks)[0]
    for i in range(jax.tree.leaves(stacks)[0].shape[0]):
        x = group(x, jax.tree.map(lambda a, i=i: a[i], stacks))
    return x


def observe_stack(
    apply_layer: Callable[[jax.Array, Params, int], tuple[jax.Array, Seen]],
    x: jax.Array,
    stacks: Params,
) -> tuple[jax.Array, Seen]:
    """Runs all layers and returns what was seen of each too: arrays [layers, ...], from the bottom.

    `apply_layer(x, params, position)` runs one and says what it saw. Layers are always scanned.
    """

    def group(x: jax.Array, params: Params) -> tuple[jax.Array, Seen]:
        seen = []
        for p in range(len(stacks)):
            x, one = apply_layer(x, params[str(p)], p)
            seen.append(one)
        return x, jax.tree.map(lambda *parts: jax.numpy.stack(parts), *seen)

    x, seen = jax.lax.scan(group, x, stacks)
    return x, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), seen)


QUERY_CHUNK = 512


Look = Callable[[jax.Array, jax.Array, jax.Array, Mask], dict[str, jax.Array]]
"""A function of the output of a layer [b, t, d], its rotated queries [b, t, n, h], its keys
[b, s, m, h] and their mask, that returns arrays by name."""


def signals(
    x_btd: jax.Array, q_btnh: jax.Array, k_bsmh: jax.Array, mask: Mask
) -> dict[str, jax.Array]:
    """Returns `attention_logit`, and `activation_rms` of the residual stream, each float32 []."""
    square = jnp.mean(jnp.square(x_btd.astype(jnp.float32)))
    largest = largest_logit(q_btnh, k_bsmh, mask)
    return {"attention_logit": largest, "activation_rms": jnp.sqrt(square)}


def coordinates(
    x_btd: jax.Array, q_btnh: jax.Array, k_bsmh: jax.Array, mask: Mask
) -> dict[str, jax.Array]:
    """Returns float32 `activation` [b, t, d] and `attention_logit` [b, m, g, t, s], 0 if masked.

    All pairs exist at once, so that lengths must be moderate.
    """
    visible_bts = mask.visible(slice(0, x_btd.shape[1]), slice(0, x_btd.shape[1]))
    scores_bmgts = _scores(q_btnh, k_bsmh)
    if visible_bts is not None:
        scores_bmgts = jnp.where(visible_bts[:, None, None], scores_bmgts, 0.0)
    return {"activation": x_btd.astype(jnp.float32), "attention_logit": scores_bmgts}


def by_stack(tower: str, seen: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns what was seen of the layers of a tower under its names: `activation_rms/blocks`."""
    ending = f"{tower}/{STACK}".lstrip("/")
    return {f"{name}/{ending}": of_layers for name, of_layers in seen.items()}


def largest_logit(q_btnh: jax.Array, k_bsmh: jax.Array, mask: Mask) -> jax.Array:
    """Returns the largest logit of all heads and visible pairs, float32 [], in chunks."""
    t = q_btnh.shape[1]
    largest = jnp.float32(-jnp.inf)
    for start in range(0, t, QUERY_CHUNK):
        queries = slice(start, min(start + QUERY_CHUNK, t))
        keys = slice(0, queries.stop if mask.causal else k_bsmh.shape[1])
        scores_bmgts = _scores(q_btnh[:, queries], k_bsmh[:, keys])
        visible_bts = mask.visible(queries, keys)
        if visible_bts is not None:
            scores_bmgts = jnp.where(visible_bts[:, None, None], scores_bmgts, -jnp.inf)
        largest = jnp.maximum(largest, jnp.max(scores_bmgts))
    return largest


def _scores(q_btnh: jax.Array, k_bsmh: jax.Array) -> jax.Array:
    """Returns the logits of all pairs, float32 [b, m, g, t, s]."""
    b, t, n, h = q_btnh.shape
    m = k_bsmh.shape[2]
    q_btmgh = q_btnh.reshape(b, t, m, n // m, h) * jnp.asarray(h**-0.5, q_btnh.dtype)
    return jnp.einsum("btmgh,bsmh->bmgts", q_btmgh, k_bsmh, preferred_element_type=jnp.float32)
