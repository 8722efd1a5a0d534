"""The average of several checkpoints of one model."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from jaxpretrain.checkpoints.streamed import Streamed
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import diff, to_dict
from jaxpretrain.interop.source import Source
from jaxpretrain.interop.tables import layers_of
from jaxpretrain.models.stack import is_stacked

_HOW_IT_IS_RUN = ("attention", "scan_layers", "remat", "dtype", "residual_dtype")
"""The fields of a model that may differ, since they do not concern its weights."""


def merge(sources: Sequence[Source]) -> Source:
    """Returns the first source with the mean of all weights, in float64, a layer at a time.

    Raises:
      InputError: the sources are not of one model.
    """
    first = sources[0]
    for other in sources[1:]:
        differing = [
            f"model.{path} is {a} there and {b} in {other.folder}"
            for path, a, b in diff(to_dict(first.model), to_dict(other.model))
            if path.split(".")[0] not in _HOW_IT_IS_RUN
        ]
        if differing:
            raise InputError(f"{first.folder} is of another model: {differing[0]}")
    kinds = {source.weights for source in sources if source.weights is not None}
    return replace(
        first,
        weights=" and ".join(sorted(kinds)) or None,
        step=max(source.step for source in sources),
        params={
            name: _mean(name, [source.params[name] for source in sources]) for name in first.params
        },
        optimizer={},
        origin={
            "token_ids": first.origin.get("token_ids"),
            "merged": [str(source.folder) for source in sources],
        },
    )


def _mean(name: str, arrays: Sequence[Streamed]) -> Streamed:
    def parts() -> Iterator[np.ndarray]:
        for layers in zip(*(layers_of(name, array) for array in arrays), strict=True):
            total = np.zeros(layers[0].shape, np.float64)
            for layer in layers:
                total += layer
            mean = (total / len(layers)).astype(np.float32)
            yield mean[None] if is_stacked(name) else mean

    return replace(arrays[0], parts=parts)
