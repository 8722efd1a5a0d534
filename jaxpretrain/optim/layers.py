"""The kind and the layers of a parameter, which an optimizer reads off its path.

Models stack equal layers: `blocks/0/query/kernel` is [layers, in, out]. An optimizer that looks at
whole tensors, such as Muon or Adafactor, must look at each layer alone, as if it were not stacked.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax

from jaxpretrain.config.errors import InputError
from jaxpretrain.models.contract import Params
from jaxpretrain.models.stack import is_stacked

ParameterKind = Literal["kernel", "embedding", "scale", "bias"]
PARAMETER_KINDS: tuple[ParameterKind, ...] = ("kernel", "embedding", "scale", "bias")

CONSTANT = "constant"
"""Last name of an array that is kept with the parameters and never changes, such as a table of
positions."""

Path = tuple[Any, ...]
"""Keys from the root of the parameters to one of them, as `jax.tree_util` gives them."""


def kind_of(path: Path) -> ParameterKind | Literal["constant"]:
    """Returns the kind of a parameter, which is its last name.

    Raises InputError for any other name, which no rule of decay would cover.
    """
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
