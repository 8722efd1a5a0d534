from collections.abc import Mapping

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.interop import tables
from jaxpretrain.interop.tables import TensorRow
from jaxpretrain.interop.tensors import Tensor

TABLE = (
    TensorRow("wte", ("embed/embedding",)),
    TensorRow("h.{}.qk", ("blocks/{}/query/kernel", "blocks/{}/key/kernel")),
    TensorRow("h.{}.norm", ("blocks/{}/norm/scale",)),
    TensorRow("h.{}.absent", ("blocks/{}/absent/scale",)),
)
# Four layers in a pattern of two; a query is 3 -> 5, a key 3 -> 2.
SHAPES = {
    "embed/embedding": (7, 3),
    **{f"blocks/{p}/query/kernel": (2, 3, 5) for p in (0, 1)},
    **{f"blocks/{p}/key/kernel": (2, 3, 2) for p in (0, 1)},
    **{f"blocks/{p}/norm/scale": (2, 3) for p in (0, 1)},
}


def _tensors(dtype: str = "float32") -> tuple[dict[str, np.ndarray], dict[str, Tensor]]:
    random = np.random.default_rng(0)
    shapes = {"wte": (7, 3)}
    for layer in range(4):
        shapes |= {f"h.{layer}.qk": (7, 3), f"h.{layer}.norm": (3,)}
    arrays = {name: random.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    return arrays, {name: Tensor(a.shape, dtype, a.__getitem__) for name, a in arrays.items()}


def test_a_table_says_what_they_have():
    expected = tables.their_shapes(tables.place(TABLE, SHAPES), SHAPES)
    assert expected == {name: a.shape for name, a in _tensors()[0].items()}


def test_kernels_are_turned_layers_stacked_by_position_and_joined_tensors_cut():
    arrays, tensors = _tensors()
    ours = tables.to_ours(tables.place(TABLE, SHAPES), SHAPES, tensors)
    found = {name: tables.whole(array) for name, array in ours.items()}
    np.testing.assert_array_equal(found["embed/embedding"], arrays["wte"])
    for position in (0, 1):
        for i in (0, 1):
            layer = position + 2 * i
            qk, stack = arrays[f"h.{layer}.qk"], f"blocks/{position}"
            np.testing.assert_array_equal(found[f"{stack}/query/kernel"][i], qk[:5].T)
            np.testing.assert_array_equal(found[f"{stack}/key/kernel"][i], qk[5:].T)
            norm = found[f"{stack}/norm/scale"][i]
            np.testing.assert_array_equal(norm, arrays[f"h.{layer}.norm"])


def test_the_same_table_leads_back():
    arrays, tensors = _tensors()
    places = tables.place(TABLE, SHAPES)
    pieces: dict[str, list[np.ndarray]] = {}
    ours = tables.to_ours(places, SHAPES, tensors)
    for name, piece in tables.to_theirs(places, ours, tables.FLOAT32):
        pieces.setdefault(name, []).append(piece)
    assert set(pieces) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(np.concatenate(pieces[name]), array)


def _without(tensors: Mapping[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def test_what_does_not_fit_is_named():
    _, tensors = _tensors()
    expected = tables.their_shapes(tables.place(TABLE, SHAPES), SHAPES)
    small = Tensor((2, 3), "float32", tensors["wte"].read)
    wide = Tensor((7, 3), "float64", tensors["wte"].read)
    for wrong, message in {
        "dir: wte is missing": _without(tensors, "wte"),
        "dir: h.1.qk and 1 more are missing": _without(tensors, "h.1.qk", "h.2.norm"),
        "dir: x is not part of the model": {**tensors, "x": small},
        r"dir: wte is \[2, 3\], but its config says \[7, 3\]": {**tensors, "wte": small},
        "dir: wte is float64, which float32 cannot hold exactly": {**tensors, "wte": wide},
    }.items():
        with pytest.raises(InputError, match=wrong):
            tables.check(message, expected, "dir")
    tables.check({**tensors, "rope.3.inv_freq": small}, expected, "dir", ("rope.*.inv_freq",))
