"""What an optimizer knows of a parameter from its path: its kind, and whether it is a stack.

Models stack equal layers: `blocks/0/query/kernel` is [layers, in, out]. An optimizer that looks at
whole tensors, such as Muon or Adafactor, must look at each layer alone, as if it were not stacked.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax

from jaxpretrain.config.errors import InputError

ParameterKind = Literal["kernel", "embedding", "scale", "bias"]
PARAMETER_KINDS: tuple[ParameterKind, ...] = ("kernel", "embedding", "scale", "bias")

CONSTANT = "constant"
"""Last name of what is kept with the parameters and never changes: a stored table of positions."""

Path = tuple[Any, ...]
"""The keys from the root of the parameters to one of them, as `jax.tree_util` gives them."""


def kind_of(path: Path) -> ParameterKind | Literal["constant"]:
    """The kind of a parameter, which is its last name.

    Raises:
      InputError: it is none of `PARAMETER_KINDS` and no constant: no rule of decay would cover it.
    """
    if (name := path[-1].key) not in (*PARAMETER_KINDS, CONSTANT):
        raise InputError(
            f"no weight-decay rule covers parameter {'/'.join(k.key for k in path)}: "
            f"its last name must be one of {', '.join(PARAMETER_KINDS)}"
        )
    return name


def is_stacked(path: Path) -> bool:
    """Whether the first axis of a parameter counts layers."""
    return any(key.key == "blocks" for key in path[:-1])


def is_layer_matrix(path: Path) -> bool:
    """Whether a parameter is a stack of matrices [layers, in, out]: not an embedding or a head."""
    return is_stacked(path) and kind_of(path) == "kernel"


def layer_axes(path: Path, num_axes: int) -> tuple[int, ...]:
    """The axes of one layer of a parameter, that is all but the stacked one."""
    return tuple(range(int(is_stacked(path)), num_axes))


def mask(params: Any, rule: Callable[[Path], bool]) -> Any:
    """Tree of booleans: the parameters whose path a rule accepts."""
    return jax.tree_util.tree_map_with_path(lambda path, _: rule(path), params)
