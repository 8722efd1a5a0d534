"""The models of scripts/make_golden_olmo.py as ours, with the weights that it draws."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import yaml

from jaxpretrain.interop import olmo, tables
from jaxpretrain.interop.hf_config import read_config
from jaxpretrain.interop.olmo_config import OlmoKeys, read_decoder
from jaxpretrain.interop.source import param_shapes, text_data
from jaxpretrain.interop.tensors import Tensor
from jaxpretrain.models.olmo.decoder import Decoder
from scripts.make_golden_olmo import NATIVE, TRANSFORMERS, Arrays, draw_weights

Reference = Callable[[str, str], Arrays]
"""(kind, name) -> what the other program computes."""


class Names(NamedTuple):
    """How another program calls the parameters of a decoder."""

    places: dict[str, list[tables.Piece]]
    shapes: tables.Shapes
    """Of our parameters."""

    @classmethod
    def of(cls, table: tables.Table, model: Any) -> "Names":
        """The names in `table` of the parameters of `model`, a decoder's config."""
        shapes = param_shapes(model, text_data(96, model.embedding_rows).example_spec())
        return cls(tables.place(table, shapes), shapes)

    def draw(self, std: float = 0.25) -> Arrays:
        """Its weights."""
        return draw_weights(tables.their_shapes(self.places, self.shapes), std)

    def to_ours(self, weights: Arrays) -> Arrays:
        """Our parameters, from all of its weights."""
        tensors = {
            name: Tensor(array.shape, str(array.dtype), array.__getitem__)
            for name, array in weights.items()
        }
        tables.check(tensors, tables.their_shapes(self.places, self.shapes), "the other program")
        ours = tables.to_ours(self.places, self.shapes, tensors)
        return {name: tables.whole(array) for name, array in ours.items()}


def decoder(name: str, folder: Path) -> tuple[Decoder, tables.Table]:
    """A model of `TRANSFORMERS` or `NATIVE`, and how the weights are called there."""
    if name in TRANSFORMERS:
        architecture, model, _ = read_config(TRANSFORMERS[name], name)
        return model, architecture.table
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": NATIVE[name]}))
    return read_decoder(OlmoKeys(folder / "config.yaml")), olmo.TABLE


def nested(named: Arrays) -> dict[str, Any]:
    """Our parameters as the model takes them."""
    tree: dict[str, Any] = {}
    for name, array in named.items():
        *path, last = name.split("/")
        at = tree
        for key in path:
            at = at.setdefault(key, {})
        at[last] = jnp.asarray(array)
    return tree
