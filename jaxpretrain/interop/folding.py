"""Models whose settings follow their size, as models of standard settings: factors in the weights.

Other programs know no factors of products and of residual branches (`models.scaling`). What a
parameter computes is linear in it, so that its factor can be part of its values.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from jaxpretrain.checkpoints.streamed import Streamed
from jaxpretrain.config.errors import InputError
from jaxpretrain.interop.source import Source
from jaxpretrain.interop.tables import whole
from jaxpretrain.models.layers import RMSNorm
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.stack import place_of

_ADDED = ("output/kernel", "output/bias", "down/kernel", "down/bias")
"""The last parameters of the branches of a layer."""
_ADDED_AFTER_NORM = ("attention_norm/scale", "mlp_norm/scale")
"""The same, where the output of a branch is normalised."""


def fold(source: Source) -> Source:
    """Returns the same model with standard scaling, its factors multiplied into the weights.

    A head that is tied to the embedding becomes a matrix of its own where it has a factor.

    Raises:
      InputError: residual branches end in norms without a scale, which take no factor.
    """
    model, growth = source.model, source.model.growth
    if model.scaling == "standard":
        return source
    factor = growth.factors("output").product
    ends, output = _ADDED, "decoder/embed/kernel"
    params = dict(source.params)
    changes: dict[str, bool] = {}
    if isinstance(model, Decoder):
        output = "head/kernel"
        if model.norm_position == "after":
            ends = _ADDED_AFTER_NORM
            if growth.branch != 1 and not isinstance(model.norm, RMSNorm):
                raise InputError("norms without a scale cannot hold the factor of their branch")
        if model.tied_head and factor != 1:
            params[output] = _transposed(params["embed/embedding"])
            changes = {"tied_head": False}
    for name, array in params.items():
        if (place := place_of(name)) is not None:
            grows = not name.startswith("decoder/")  # the decoder of images stays as it is
            if grows and place.part in ends:
                params[name] = _multiplied(array, growth.branch)
        elif name == output:
            params[name] = _multiplied(array, factor)
    standard = replace(model, scaling="standard", base_width=None, base_depth=None, **changes)
    return replace(source, model=standard, params=params)


def _multiplied(array: Streamed, factor: float) -> Streamed:
    def parts() -> Iterator[np.ndarray]:
        return (part * np.float32(factor) for part in array.parts())

    return array if factor == 1 else replace(array, parts=parts)


def _transposed(array: Streamed) -> Streamed:
    def parts() -> Iterator[np.ndarray]:
        yield np.ascontiguousarray(whole(array).T)

    return replace(array, shape=array.shape[::-1], parts=parts)
