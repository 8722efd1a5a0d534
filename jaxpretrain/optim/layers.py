"""The kind and the layers of a parameter, read off its path, and norms by part and layer.

Models stack equal layers: `blocks/0/query/kernel` is [layers, in, out]. An optimizer that looks at
whole tensors, such as Muon or Adafactor, must look at each layer alone, as if it were not stacked.

For norms, squares are summed by layer first, and the norm of the whole comes from these sums. The
parts cost nothing, because no array is read twice.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxpretrain.config.errors import InputError
from jaxpretrain.models.contract import Params
from jaxpretrain.models.stack import STACK, is_stacked, place_of

ParameterKind = Literal["kernel", "embedding", "scale", "bias"]
PARAMETER_KINDS: tuple[ParameterKind, ...] = ("kernel", "embedding", "scale", "bias")

CONSTANT = "constant"
"""Last name of an array among the parameters that never changes, such as a table of positions."""

Path = tuple[Any, ...]
"""Keys from the root of the parameters to one of them, as `jax.tree_util` gives them."""


def kind_of(path: Path) -> ParameterKind | Literal["constant"]:
    """Returns the kind of a parameter, its last name; InputError for names that no rule covers."""
    if (name := path[-1].key) not in (*PARAMETER_KINDS, CONSTANT):
        raise InputError(
            f"no weight-decay rule covers parameter {name_of(path)}: "
            f"its last name must be one of {', '.join(PARAMETER_KINDS)}"
        )
    return name


def name_of(path: Path) -> str:
    """Returns the name of a parameter, `blocks/0/query/kernel`."""
    return "/".join(key.key for key in path)


def is_layer_matrix(path: Path) -> bool:
    """Returns True for a stack of matrices [layers, in, out], so for no embedding and no head."""
    return is_stacked(name_of(path)) and kind_of(path) == "kernel"


def layer_axes(path: Path, num_axes: int) -> tuple[int, ...]:
    """Returns the axes of one layer of a parameter, that is all but the stacked one."""
    return tuple(range(int(is_stacked(name_of(path))), num_axes))


def mask(params: Params, rule: Callable[[Path], bool]) -> Params:
    """Returns a tree of booleans, true for the parameters whose path a rule accepts."""
    return jax.tree_util.tree_map_with_path(lambda path, _: rule(path), params)


def multiply(factor: Callable[[Path], float]) -> optax.GradientTransformation:
    """Returns the multiplication of each parameter's update by a factor of its path."""
    leaf = lambda path, u: factor(path) * u  # noqa: E731
    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(leaf, updates))


Parts = dict[str, jax.Array]
"""Numbers by part of a model, float32. A part of a stack has `blocks` in its name and a number for
each layer from the bottom, [layers] (`blocks/query`; `blocks` is the whole layer); another part has
one number, [] (`embed`)."""


def norms(tree: optax.Params) -> tuple[jax.Array, Parts]:
    """Returns the norm of a tree like the parameters, and the norms of its parts with biases."""
    squares = _squares(tree)
    return _root_of_sum(squares), {
        part: jnp.sqrt(square) for part, square in (_stacks(squares) | squares).items()
    }


def global_norm(tree: optax.Params) -> jax.Array:
    """Returns the norm of a tree like the parameters."""
    return _root_of_sum(_squares(tree))


SMALL_NORM = 1e-6
"""The number that clipping adds to a norm; it is torch's and so OLMo's."""


def clip_by_global_norm(
    max_norm: float, warmup: int = 0, warmup_factor: float = 1.0
) -> optax.GradientTransformation:
    """Returns the scaling by min(1, max_norm / (norm + 1e-6)), norm over all parameters, float32.

    Optax's own clipping has no 1e-6. In the updates 2 to
    warmup + 1, counted from 1, the threshold is `warmup_factor` times as high: OLMo's trainer
    clips and then looks up the threshold of the step, which so takes effect one update late.
    """

    def clip(updates: optax.Updates, threshold: ArrayLike) -> optax.Updates:
        factor = jnp.minimum(1.0, threshold / (global_norm(updates) + SMALL_NORM))
        return jax.tree.map(lambda u: u * factor, updates)

    if not warmup:
        return optax.stateless(lambda updates, params: clip(updates, max_norm))

    def update(updates: optax.Updates, state: Any, params: object = None):
        is_raised = (state.count >= 1) & (state.count <= warmup)
        threshold = jnp.where(is_raised, warmup_factor * max_norm, max_norm)
        count = jnp.asarray(optax.safe_increment(state.count))
        return clip(updates, threshold), optax.ScaleByScheduleState(count)

    def init(params: optax.Params) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    return optax.GradientTransformation(init, update)


def _root_of_sum(squares: Parts) -> jax.Array:
    return jnp.sqrt(sum(map(jnp.sum, squares.values())))


def _squares(tree: optax.Params) -> Parts:
    sums: dict[str, dict[int, jax.Array]] = {}
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        part, position = _place(path)
        square = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=layer_axes(path, x.ndim))
        positions = sums.setdefault(part, {})
        positions[position] = positions[position] + square if position in positions else square
    return {part: _in_order(positions) for part, positions in sums.items()}


def _stacks(squares: Parts) -> Parts:
    """Returns the sums over all parts of a layer."""
    stacks: Parts = {}
    for part, square in squares.items():
        above, is_in_stack, _ = part.rpartition(f"{STACK}/")
        if is_in_stack:
            name = f"{above}{STACK}"
            stacks[name] = stacks[name] + square if name in stacks else square
    return stacks


def _place(path: Path) -> tuple[str, int]:
    """Returns ("blocks/query", 0), a part and a position, for "blocks/0/query/kernel"."""
    name = name_of(path)
    if (place := place_of(name)) is None:
        return name.rpartition("/")[0] or name, 0
    return f"{place.stack}/{place.part}".rpartition("/")[0], place.position


def _in_order(positions: dict[int, jax.Array]) -> jax.Array:
    """Returns the layers of the model, from the bottom, of the layers at each position."""
    if len(positions) == 1:
        return positions[0]
    return jnp.stack([positions[p] for p in sorted(positions)], axis=1).reshape(-1)
