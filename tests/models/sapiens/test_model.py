import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.interop.sapiens import to_params
from jaxpretrain.interop.tensors import Tensor
from jaxpretrain.models.choices import RematPolicy
from jaxpretrain.models.sapiens import patches
from jaxpretrain.models.sapiens.model import VitMae, VitMaeModel
from jaxpretrain.optim.layers import is_layer_matrix, mask
from jaxpretrain.optim.optimizers import decay_mask
from jaxpretrain.parallel.mesh import RULES, Layout, Mesh
from tests.models.sapiens.conftest import SIZE, TINY, build, make_images, make_params

GOLDEN = Path(__file__).parents[2] / "golden"


def loss_and_gradients(model: VitMaeModel, params: Any, batch: Any) -> tuple[Any, Any]:
    def objective(params: Any) -> jax.Array:
        return model.loss(params, batch, jax.random.key(5))[0]

    return jax.jit(jax.value_and_grad(objective))(params)


def assert_close(found: Any, expected: Any, tolerance: float = 2e-5) -> None:
    def close(a: Any, b: Any) -> None:
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)

    jax.tree.map(close, found, expected)


# --- parity with the formulas in PyTorch, scripts/make_golden_vit_mae.py ---


def read_golden(name: str) -> tuple[VitMae, tuple[int, int], Any]:
    """(config, image size, arrays)."""
    arrays = np.load(GOLDEN / f"vit_mae_{name}.npz")
    sizes = json.loads(str(arrays["sizes"]))
    rows, columns = sizes.pop("grid")
    config = replace(TINY, **sizes)
    return config, (config.patch_size * rows, config.patch_size * columns), arrays


def from_torch(arrays: Any, kind: str, config: VitMae, size: tuple[int, int]) -> Any:
    """Our tree of the golden weights or gradients, without positions."""
    tensors = {
        name.removeprefix(f"{kind}/"): Tensor(a.shape, "float32", a.__getitem__)
        for name, a in arrays.items()
        if name.startswith(f"{kind}/")
    }
    params: Any = {}
    for name, array in to_params(tensors, config, size, kind)[1].items():
        *path, leaf = name.split("/")
        node = params
        for key in path:
            node = node.setdefault(key, {})
        node[leaf] = jnp.concatenate(list(array.parts()))
    params["encoder"].pop("positions", None)
    params["decoder"].pop("positions", None)
    return params


@pytest.mark.parametrize("name", ["even", "odd"])
def test_features_are_those_of_the_reference(name):
    config, size, golden = read_golden(name)
    params = from_torch(golden, "weight", config, size)
    for depth in range(1, config.num_layers + 1):
        # A tower cut off after some layers: its norm is undone by comparing normalised outputs.
        cut = dict(params["encoder"], norm=_identity_norm(config.d_model))
        cut["blocks"] = jax.tree.map(lambda a, n=depth: a[:n], params["encoder"]["blocks"])
        found = jax.jit(build(config, size).encode)({"encoder": cut}, golden["images"])
        expected = _normalised(golden["layers"][depth - 1])
        np.testing.assert_allclose(found, expected, atol=1e-4)
    features = jax.jit(build(config, size).encode)(params, golden["images"])
    np.testing.assert_allclose(features, golden["features"], atol=1e-4)
    assert np.ptp(golden["features"]) > 3.0


def _identity_norm(width: int) -> dict[str, jax.Array]:
    return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}


def _normalised(x: np.ndarray) -> np.ndarray:
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6)


@pytest.mark.parametrize("name", ["even", "odd"])
def test_loss_and_gradients_are_those_of_the_reference(name):
    config, size, golden = read_golden(name)
    model = build(config, size)
    params = from_torch(golden, "weight", config, size)
    orders = jnp.argsort(golden["noise"], axis=1)

    def mean_error(params: Any) -> jax.Array:
        error, _ = model.errors(params, jnp.asarray(golden["images"]), orders)
        return jnp.mean(error) / (model.num_patches - model.num_seen)

    loss, gradients = jax.jit(jax.value_and_grad(mean_error))(params)
    np.testing.assert_allclose(loss, golden["loss"], rtol=1e-5)
    expected = from_torch(golden, "gradient", config, size)
    assert_close(gradients, expected, 1e-4)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(expected))


# --- masks ---


def test_the_loss_is_the_mean_over_removed_patches_of_the_error_of_the_picture():
    """So predictions are put back in their places, and visible patches stay as they are."""
    config = replace(TINY, normalize_patches=False, mask_ratio=0.4)
    model, params = build(config), make_params(config, std=0.05)
    batch = {"images": make_images() // 2 + 64}  # far from black and white: nothing is clipped
    total, weight, _ = jax.jit(model.loss)(params, batch, jax.random.key(5))
    pictures = jax.jit(model.reconstruct)(params, batch, jax.random.key(5))
    images, masked, painted = (np.asarray(picture) for picture in pictures)
    np.testing.assert_allclose(images, np.asarray(batch["images"]) / 255, atol=1e-6)
    removed = np.any(
        np.asarray(patches.patchify(jnp.asarray(masked != images), 2)), axis=2, keepdims=True
    )
    assert weight == removed.sum() == 2 * 5  # 12 patches, 7 of them seen
    same = np.asarray(patches.patchify(jnp.asarray(painted == images), 2))
    assert np.all(same | removed)
    std = np.array([58.395, 57.12, 57.375])
    errors = np.mean(((painted - images) * 255 / std) ** 2, axis=(1, 2, 3)) * 12
    np.testing.assert_allclose(total, errors.sum(), rtol=1e-4)


def test_grey_is_what_masked_pictures_show_of_removed_patches():
    model = build(TINY)
    batch = {"images": jnp.zeros((2, *SIZE, 3), jnp.uint8)}
    _, masked, _ = jax.jit(model.reconstruct)(make_params(TINY), batch, jax.random.key(0))
    grey = np.all(np.isclose(masked, np.array([123.675, 116.28, 103.53]) / 255, atol=1e-5), axis=3)
    np.testing.assert_array_equal(grey.sum(axis=(1, 2)), 9 * 4)
    np.testing.assert_allclose(np.asarray(masked)[~grey], 0.0, atol=1e-7)


def test_with_normalised_patches_pictures_get_the_true_brightness_and_contrast():
    """A head that predicts zero paints each removed patch in its mean."""
    model, params = build(TINY), make_params(TINY)
    params["decoder"]["head"] = jax.tree.map(jnp.zeros_like, params["decoder"]["head"])
    batch = {"images": make_images()}
    images, masked, painted = jax.jit(model.reconstruct)(params, batch, jax.random.key(0))
    normalized = patches.patchify(patches.normalize(batch["images"]), 2)
    means = jnp.broadcast_to(normalized.mean(axis=2, keepdims=True), normalized.shape)
    expected = jnp.where(masked == images, images, patches.to_unit(patches.unpatchify(means, 2, 8)))
    np.testing.assert_allclose(painted, expected, atol=1e-5)


def test_targets_are_the_pixels_of_removed_patches_alone():
    """By gradient: with an encoder that sees nothing, the loss depends on no other pixel."""
    config = replace(TINY, normalize_patches=False)
    model, params = build(config), make_params(config)
    orders = patches.draw_orders(jax.random.key(0), jnp.arange(1), 12)
    removed = np.isin(np.arange(12), orders[0, 3:])

    def reach(params: Any) -> np.ndarray:
        """The patches on which the error depends."""
        images = make_images(batch=1).astype(jnp.float32)
        error = jax.jit(jax.grad(lambda images: jnp.sum(model.errors(params, images, orders)[0])))
        return np.any(np.asarray(patches.patchify(error(images), 2))[0] != 0.0, axis=1)

    assert np.all(reach(params))
    params["encoder"]["patch"] = jax.tree.map(jnp.zeros_like, params["encoder"]["patch"])
    np.testing.assert_array_equal(reach(params), removed)


def test_removed_pixels_do_not_leak_into_predictions():
    config = replace(TINY, normalize_patches=False)
    params, images = make_params(config), make_images()
    reconstruct = jax.jit(build(config).reconstruct)
    before, masked, painted = reconstruct(params, {"images": images}, jax.random.key(0))
    other = jnp.where(masked == before, images, 255 - images)
    after, _, same = reconstruct(params, {"images": other}, jax.random.key(0))
    assert np.mean(before != after) > 0.7
    np.testing.assert_array_equal(painted, same)


def test_masks_depend_on_rng_and_row_and_on_nothing_else():
    model, params, images = build(TINY), make_params(TINY), make_images(batch=4)
    loss = jax.jit(lambda batch, rng: model.loss(params, batch, rng)[2]["loss"])
    rng = jax.random.key(5)
    whole = loss({"images": images}, rng)
    halves = [loss({"images": images[i::2], "row": jnp.arange(i, 4, 2)}, rng) for i in (0, 1)]
    np.testing.assert_allclose(np.stack(halves, axis=1).ravel(), whole, rtol=1e-5)
    np.testing.assert_array_equal(loss({"images": images}, rng), whole)
    assert np.all(np.abs(loss({"images": images}, jax.random.key(6)) - whole) > 1e-4)
    same = loss({"images": images[jnp.zeros(4, int)]}, rng)  # one image, four masks
    assert len(np.unique(np.asarray(same).round(4))) == 4


# --- the objective ---


def test_predicting_zero_with_normalised_patches_costs_their_variance():
    model, params = build(TINY), make_params(TINY)
    params["decoder"]["head"] = jax.tree.map(jnp.zeros_like, params["decoder"]["head"])
    batch = {"images": make_images()}
    total, weight, sums = jax.jit(model.loss)(params, batch, jax.random.key(0))
    np.testing.assert_array_equal(sums["loss"], sums["loss_predict_zero"])
    # The variance is the unbiased one, of 12 values.
    np.testing.assert_allclose(total / weight, 11 / 12, rtol=1e-4)


def test_weights_weigh_images():
    model, params, images = build(TINY), make_params(TINY), make_images(batch=3)
    loss = jax.jit(lambda batch: model.loss(params, batch, jax.random.key(5)))
    _, _, each = loss({"images": images})
    weights = jnp.array([0.0, 1.0, 2.5])
    total, weight, sums = loss({"images": images, "weight": weights})
    for name, values in each.items():
        np.testing.assert_allclose(sums[name], weights * values, rtol=1e-6)
    np.testing.assert_allclose(total, jnp.sum(sums["loss"]), rtol=1e-6)
    assert weight == 3.5 * 9


# --- the same model, computed otherwise ---


@pytest.fixture(scope="module")
def expected_gradients() -> tuple[Any, Any]:
    """Loss and gradients of TINY as it stands: scanned, nothing recomputed."""
    return loss_and_gradients(build(TINY), make_params(TINY), {"images": make_images(batch=8)})


@pytest.mark.parametrize(
    "change",
    [{"scan_layers": False}, {"scan_layers": False, "remat": "full", "attention": "xla"}]
    + [{"remat": policy} for policy in get_args(RematPolicy) if policy != "none"],
    ids=str,
)
def test_ways_of_computing_change_neither_loss_nor_gradients(change, expected_gradients):
    model = build(replace(TINY, **change))
    found = loss_and_gradients(model, make_params(TINY), {"images": make_images(batch=8)})
    assert_close(found, expected_gradients)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_where_it_counts(expected_gradients):
    half, params = build(replace(TINY, dtype="bfloat16")), make_params(TINY)
    batch = {"images": make_images(batch=8)}
    assert jax.eval_shape(half.encode, params, batch["images"]).dtype == jnp.bfloat16
    loss, gradients = loss_and_gradients(half, params, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves((loss, gradients))} == {jnp.dtype("float32")}
    np.testing.assert_allclose(loss, expected_gradients[0], rtol=0.01)
    norm = lambda tree: math.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(tree)))  # noqa: E731
    error = norm(jax.tree.map(jnp.subtract, gradients, expected_gradients[1]))
    assert 0.0 < error < 0.05 * norm(expected_gradients[1])


def test_scanned_and_unrolled_layers_have_one_layout():
    scanned, unrolled = (
        jax.eval_shape(build(replace(TINY, scan_layers=scan)).init, jax.random.key(0))
        for scan in (True, False)
    )
    assert scanned == unrolled


@pytest.mark.parametrize("mesh", [Mesh(fsdp=8), Mesh(replica=2, fsdp=2, tensor=2)], ids=str)
def test_any_mesh_gives_the_same_loss_and_gradients(mesh, expected_gradients):
    layout = Layout(mesh.build(jax.devices()))
    model = build(TINY, constrain=layout.constrain, shard=layout.shard)
    params = make_params(TINY)
    params = jax.device_put(params, layout.tree(model.axes(), params))
    divided = [not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(params)]
    assert sum(divided) > len(divided) // 3
    batch = jax.device_put({"images": make_images(batch=8)}, layout.batch)
    assert_close(loss_and_gradients(model, params, batch), expected_gradients)


# --- parameters ---


def test_parameter_names_and_shapes_are_the_contract():
    """Checkpoints know parameters by these names."""
    config = replace(TINY, positions="stored")
    shapes = jax.eval_shape(build(config).init, jax.random.key(0))
    names = {
        "/".join(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }

    def tower(side: str, layers: int, d: int, f: int) -> dict[str, tuple[int, ...]]:
        maps = {name: (d, d) for name in ("query", "key", "value", "output")}
        maps |= {"up": (d, f), "down": (f, d)}
        block = {f"{name}/kernel": shape for name, shape in maps.items()}
        block |= {f"{name}/bias": shape[1:] for name, shape in maps.items()}
        norms = ("attention_norm", "mlp_norm")
        block |= {f"{name}/{leaf}": (d,) for name in norms for leaf in ("scale", "bias")}
        stack = {f"blocks/0/{name}": (layers, *shape) for name, shape in block.items()}
        rest = {"norm/scale": (d,), "norm/bias": (d,), "positions/constant": (13, d)}
        return {f"{side}/{name}": shape for name, shape in {**stack, **rest}.items()}

    assert names == {
        **tower("encoder", 2, 24, 40),
        **tower("decoder", 1, 16, 64),
        "encoder/patch/kernel": (12, 24),
        "encoder/patch/bias": (24,),
        "encoder/cls/embedding": (24,),
        "decoder/embed/kernel": (24, 16),
        "decoder/embed/bias": (16,),
        "decoder/mask/embedding": (16,),
        "decoder/head/kernel": (16, 12),
        "decoder/head/bias": (12,),
    }


def test_axes_name_every_dimension_of_every_parameter():
    model = build(replace(TINY, positions="stored"))
    shapes, axes = jax.eval_shape(model.init, jax.random.key(0)), model.axes()
    is_names = lambda leaf: isinstance(leaf, tuple)  # noqa: E731
    assert jax.tree.structure(axes, is_leaf=is_names) == jax.tree.structure(shapes)
    for (path, names), shape in zip(
        jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_names),
        jax.tree.leaves(shapes),
        strict=True,
    ):
        assert len(names) == len(shape.shape)
        assert set(names) <= RULES.keys()
        assert (names[0] == "layers") == (path[1].key == "blocks")


def test_matrices_decay_and_nothing_else_and_muon_takes_those_of_layers():
    params = jax.eval_shape(build(TINY).init, jax.random.key(0))
    paths = jax.tree_util.tree_leaves_with_path(params)
    decayed = jax.tree.leaves(decay_mask(params, ("kernel",)))
    assert [path[-1].key == "kernel" for path, _ in paths] == decayed
    matrices = jax.tree.leaves(mask(params, is_layer_matrix))
    for (path, _), is_matrix in zip(paths, matrices, strict=True):
        assert is_matrix == (path[1].key == "blocks" and path[-1].key == "kernel")
    assert sum(matrices) == 2 * 6 and sum(decayed) == 2 * 6 + 3


def test_no_two_matrices_start_alike_and_the_seed_decides():
    init = jax.jit(build(TINY).init)
    params = init(jax.random.key(0))
    kernels = [
        leaf.reshape(-1, *leaf.shape[-2:])
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if path[-1].key == "kernel"
    ]
    corners = np.concatenate([kernel[:, 0, 0] for kernel in kernels])
    assert len(np.unique(corners)) == len(corners) == 6 * (2 + 1) + 3
    assert_close(init(jax.random.key(0)), params, 0.0)
    other = init(jax.random.key(1))
    assert not np.any(other["encoder"]["patch"]["kernel"] == params["encoder"]["patch"]["kernel"])


# --- what the model tells about itself ---


def test_flops_follow_from_the_parameters():
    """All patches are projected and predicted; attention has two products of all pairs."""
    model = build(TINY)
    shapes = jax.eval_shape(model.init, jax.random.key(0))

    def products(half: str, tokens: int, width: int, num_layers: int) -> int:
        kernels = sum(
            leaf.size
            for path, leaf in jax.tree_util.tree_leaves_with_path(shapes[half]["blocks"])
            if path[-1].key == "kernel"
        )
        return kernels * tokens + num_layers * 2 * tokens**2 * width

    expected = products("encoder", 4, 24, 2) + products("decoder", 13, 16, 1)
    expected += 12 * 12 * 24 + 4 * 24 * 16 + 13 * 16 * 12
    assert model.flops_per_example(causal=False) == 6 * expected


def test_the_contract_of_models():
    model = build(TINY)
    assert model.batch_spec(3) == {"images": jax.ShapeDtypeStruct((3, *SIZE, 3), jnp.uint8)}
    assert model.units_per_example() == ("images", 1)
    assert model.input_limits() == {}
    text = "\n".join(model.describe())
    for part in ("6 x 8", "12 patches", "3 seen", "9 predicted", "xla_blocks", "remat none"):
        assert part in text
    assert "padded" not in text
    half = replace(TINY, dtype="bfloat16")
    on_gpu = half.build({"images": ((*SIZE, 3), "uint8")}, platform="gpu")
    assert on_gpu.kernel == "cudnn"
    assert "6 and 8 (padded to a multiple of 8)" in "\n".join(on_gpu.describe())


def test_activations_are_pinned_by_axes_that_the_sharding_table_knows():
    pinned = []

    def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        assert len(axes) == x.ndim
        pinned.extend(name for name in axes if name is not None)
        return x

    model, params = build(TINY, constrain=constrain), make_params(TINY)
    jax.eval_shape(model.loss, params, {"images": make_images()}, jax.random.key(0))
    assert set(pinned) == {"batch", "heads", "mlp"} <= RULES.keys()
