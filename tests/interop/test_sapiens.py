import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.checkpoints.streamed import Streamed
from jaxpretrain.config.errors import InputError
from jaxpretrain.interop import sapiens
from jaxpretrain.interop.source import Source
from jaxpretrain.interop.tables import whole
from jaxpretrain.interop.tensors import Tensor
from jaxpretrain.models.sapiens.model import VitMae

Arrays = dict[str, np.ndarray]


def read_golden(name: str) -> tuple[VitMae, tuple[int, int], Any]:
    """(config, image size, arrays) of what scripts/make_golden_vit_mae.py wrote."""
    arrays = np.load(Path(__file__).parent.parent / "golden" / f"vit_mae_{name}.npz")
    sizes = json.loads(str(arrays["sizes"]))
    rows, columns = sizes.pop("grid")
    config = VitMae(dtype="float32", remat="none", **sizes)
    return config, (config.patch_size * rows, config.patch_size * columns), arrays


def weights_of(golden: Any) -> Arrays:
    names = [name for name in golden if name.startswith("weight/")]
    return {name.removeprefix("weight/"): golden[name] for name in names}


def as_tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {name: Tensor(a.shape, str(a.dtype), a.__getitem__) for name, a in arrays.items()}


def tree(params: dict[str, Streamed]) -> Any:
    """The nested dict that a model takes."""
    nested: Any = {}
    for name, array in params.items():
        *path, leaf = name.split("/")
        node = nested
        for key in path:
            node = node.setdefault(key, {})
        node[leaf] = jnp.asarray(whole(array))
    return nested


@pytest.fixture
def square() -> tuple[VitMae, Arrays]:
    """A model for square images and its weights, under the names that they have in training."""
    config, _, golden = read_golden("odd")
    return config, weights_of(golden)


@pytest.fixture
def save(tmp_path: Path):
    """Saves arrays as a .pth file; `clean` as released encoders are."""
    torch = pytest.importorskip("torch")

    def save(arrays: Arrays, *, clean: bool = False) -> Path:
        tensors = {name: torch.from_numpy(a.copy()) for name, a in arrays.items()}
        if clean:
            prefix = "backbone."
            content = {n.removeprefix(prefix): t for n, t in tensors.items() if prefix in n}
        else:
            content = {"meta": {"epoch": 3}, "state_dict": tensors}
        torch.save(content, tmp_path / "checkpoint.pth")
        return tmp_path / "checkpoint.pth"

    return save


@pytest.mark.parametrize("name", ["even", "odd"])
def test_there_and_back_is_exact(name):
    config, size, golden = read_golden(name)
    weights = weights_of(golden)
    model, params = sapiens.to_params(as_tensors(weights), config, size, name)
    assert model == config  # the positions are the computed ones
    back = sapiens.from_params(params, model, size)
    assert back.keys() == weights.keys()
    for key, array in back.items():
        tolerance = 1e-6 if key.endswith("pos_embed") else 0.0
        np.testing.assert_allclose(array, weights[key], rtol=0, atol=tolerance)
        assert array.dtype == np.float32


def test_parameters_are_those_of_the_model():
    config, size, golden = read_golden("even")
    _, params = sapiens.to_params(as_tensors(weights_of(golden)), config, size, "golden")
    built = config.build({"images": ((*size, 3), "uint8")}, platform="cpu")
    expected = jax.eval_shape(built.init, jax.random.key(0))
    found = jax.eval_shape(lambda: tree(params))
    assert found == expected


def test_other_positions_are_carried(square):
    """Those of the original MAE, for one: the column first."""
    config, weights = square
    table = weights["backbone.pos_embed"]
    swapped = np.roll(table, table.shape[2] // 2, axis=2)
    other = as_tensors(weights | {"backbone.pos_embed": swapped})
    model, params = sapiens.to_params(other, config, (9, 9), "other")
    assert model == replace(config, positions="stored")
    np.testing.assert_array_equal(whole(params["encoder/positions/constant"]), swapped[0])
    back = sapiens.from_params(params, model, (9, 9))
    np.testing.assert_array_equal(back["backbone.pos_embed"], swapped)


def test_a_training_checkpoint_has_both_halves(square, save):
    config, weights = square
    source = sapiens.open_sapiens(save(weights), model=config)
    assert source.model == config and source.data.size == 9
    assert dict(source.origin) == {"dtype": "float32"}
    expected = sapiens.to_params(as_tensors(weights), config, (9, 9), "")[1]
    jax.tree.map(np.testing.assert_array_equal, tree(dict(source.params)), tree(expected))


def test_a_released_encoder_gets_a_fresh_decoder_only_when_that_is_asked_for(square, save):
    config, weights = square
    path = save(weights, clean=True)
    with pytest.raises(InputError, match="without its decoder"):
        sapiens.open_sapiens(path, model=config)
    source = sapiens.open_sapiens(path, model=config, decoder="fresh")
    assert source.origin["decoder"] == "fresh"
    params = tree(dict(source.params))
    built = config.build(source.data.example_spec(), platform="cpu")
    assert jax.eval_shape(lambda: params) == jax.eval_shape(built.init, jax.random.key(0))
    fresh = jax.jit(built.init)(jax.random.key(0))["decoder"]
    jax.tree.map(np.testing.assert_array_equal, params["decoder"], fresh)
    _, _, golden = read_golden("odd")
    features = jax.jit(built.encode)(params, jnp.asarray(golden["images"]))
    np.testing.assert_allclose(features, golden["features"], atol=1e-4)


def test_the_published_size_is_known_by_width_and_depth(square, save, monkeypatch):
    config, weights = square
    path = save(weights, clean=True)
    with pytest.raises(InputError, match="2 layers of width 20 are no published encoder"):
        sapiens.open_sapiens(path)
    monkeypatch.setitem(sapiens.SAPIENS_SIZES, "tiny", config)
    assert sapiens.open_sapiens(path, decoder="fresh").model == config


def test_positions_are_resized_for_another_image_size(square, save):
    config, weights = square
    source = sapiens.open_sapiens(save(weights), model=config, size=12)
    assert source.model.positions == "stored" and source.data.size == 12
    for half, name in (("encoder", "backbone.pos_embed"), ("decoder", "neck.decoder_pos_embed")):
        table = whole(source.params[f"{half}/positions/constant"])
        assert table.shape == (17, weights[name].shape[2])
        np.testing.assert_array_equal(table[0], 0.0)
        grid = table[1:].reshape(4, 4, -1)
        column = grid[..., grid.shape[2] // 2]  # its sine at frequency one
        np.testing.assert_allclose(column, column[:1].repeat(4, axis=0), atol=1e-6)
        assert np.all(np.diff(column[0, :3]) > 0.1)


@pytest.mark.parametrize("size", [0, 2, 10])
def test_a_size_that_patches_do_not_divide_is_refused(square, save, size):
    config, weights = square
    with pytest.raises(InputError, match="model"):
        sapiens.open_sapiens(save(weights), model=config, size=size)


def test_resizing_is_torchs_bicubic_with_pixel_centres():
    """Between the centres of a row 0, 1, 2, 3 that becomes twice as long, a = -0.75."""
    pytest.importorskip("torch")
    table = np.zeros((1, 17, 4), np.float32)
    table[0, 0] = 7.0
    table[0, 1:] = np.tile(np.arange(4.0), 4)[:, None]
    other = sapiens.resized(Tensor(table.shape, "float32", table.__getitem__), (4, 8))
    found = other.read(slice(None))
    np.testing.assert_array_equal(found[0, 0], 7.0)
    a, t = -0.75, 0.25  # a quarter past the centre of pixel 1: the third of eight

    def near(x: float) -> float:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1

    def far(x: float) -> float:
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a

    expected = 0 * far(1 + t) + 1 * near(t) + 2 * near(1 - t) + 3 * far(2 - t)
    np.testing.assert_allclose(found[0, 1:].reshape(4, 8, 4)[:, 3], expected, rtol=1e-5)
    same = sapiens.resized(Tensor(table.shape, "float32", table.__getitem__), (4, 4))
    np.testing.assert_allclose(same.read(slice(None)), table, atol=1e-6)


@pytest.mark.parametrize("layout", ["clean", "training"])
def test_what_is_written_can_be_read_again(square, save, tmp_path, layout):
    config, weights = square
    source = sapiens.open_sapiens(save(weights), model=config)
    sapiens.write_sapiens(source, tmp_path / "out", layout)
    import torch

    content = torch.load(tmp_path / "out" / "sapiens.pth", weights_only=True)
    encoder = {name for name in weights if name.startswith("backbone.")}
    if layout == "clean":
        assert content.keys() == {name.removeprefix("backbone.") for name in encoder}
    else:
        assert content["state_dict"].keys() == weights.keys()
    again = sapiens.open_sapiens(tmp_path / "out" / "sapiens.pth", model=config, decoder="fresh")
    halves = ("encoder",) if layout == "clean" else ("encoder", "decoder")
    for half in halves:
        first, second = (tree(dict(s.params))[half] for s in (source, again))
        jax.tree.map(np.testing.assert_array_equal, first, second)


def test_positions_close_to_the_computed_ones_keep_the_bits_of_the_file(square, save, tmp_path):
    torch = pytest.importorskip("torch")
    config, weights = square
    noise = np.random.default_rng(0).uniform(-9e-5, 9e-5, weights["backbone.pos_embed"].shape)
    weights["backbone.pos_embed"] += noise.astype(np.float32)
    source = sapiens.open_sapiens(save(weights), model=config)
    assert source.model == config  # they are computed here
    sapiens.write_sapiens(source, tmp_path / "out", "training")
    written = torch.load(tmp_path / "out" / "sapiens.pth", weights_only=True)["state_dict"]
    for name, array in weights.items():
        assert written[name].numpy().tobytes() == array.tobytes(), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone.ln1.bias": None}, "backbone.ln1.bias is missing"),
        ({"neck.mask_token": None}, "neck.mask_token is missing"),
        ({"backbone.layers.0.gamma": np.ones(20)}, "backbone.layers.0.gamma is not part of"),
        ({"backbone.cls_token": np.ones((1, 20), np.float32)}, "backbone.cls_token is [1, 20]"),
        ({"backbone.ln1.bias": np.ones(20, np.int32)}, "backbone.ln1.bias is int32"),
        (
            {"backbone.patch_embed.projection.weight": np.ones((20, 9, 3, 1), np.float32)},
            "backbone.patch_embed.projection.weight is [20, 9, 3, 1]",
        ),
        (
            {"backbone.pos_embed": np.ones((1, 9, 20), np.float32)},
            "backbone.pos_embed is not [1, 1 + a square, width]",
        ),
        ({"backbone.pos_embed": None}, "backbone.pos_embed is not [1, 1 + a square, width]"),
    ],
    ids=str,
)
def test_what_is_not_such_a_model_is_refused_in_one_line(square, save, change, message):
    config, weights = square
    changed = {name: array for name, array in (weights | change).items() if array is not None}
    with pytest.raises(InputError) as error:
        sapiens.open_sapiens(save(changed), model=config)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_file_of_something_else_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    with pytest.raises(InputError, match="is no dict of tensors"):
        sapiens.open_sapiens(tmp_path / "list.pth")


def test_without_torch_one_line_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="pip install 'torch>="):
        sapiens.open_sapiens(tmp_path / "checkpoint.pth")
    data: Any = None
    source = Source(VitMae(), data, 0, {}, tmp_path)
    with pytest.raises(InputError, match="pip install 'torch>="):
        sapiens.write_sapiens(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
