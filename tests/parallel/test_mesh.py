import math
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import mesh_utils
from jax.sharding import AxisType, PartitionSpec

from jaxpretrain.config.errors import InputError
from jaxpretrain.models.contract import Spread
from jaxpretrain.parallel.mesh import AXES, Layout, Mesh, nearest_sizes


def _layout(replica: int = 1, fsdp: int = -1, tensor: int = 1, num_devices: int = 8) -> Layout:
    return Layout(Mesh(replica, fsdp, tensor).build(jax.devices()[:num_devices]))


@pytest.mark.parametrize(
    ("mesh", "num_devices", "sizes"),
    [
        (Mesh(), 8, (1, 8, 1)),
        (Mesh(), 1, (1, 1, 1)),
        (Mesh(replica=2, tensor=2), 8, (2, 2, 2)),
        (Mesh(replica=-1, fsdp=1), 8, (8, 1, 1)),
        (Mesh(fsdp=2, tensor=-1), 6, (1, 2, 3)),
        (Mesh(2, 4, 1), 8, (2, 4, 1)),
    ],
)
def test_one_axis_takes_the_devices_that_are_left(mesh: Mesh, num_devices: int, sizes):
    built = mesh.build(jax.devices()[:num_devices])
    assert tuple(built.shape.items()) == tuple(zip(AXES, sizes, strict=True))
    assert set(built.axis_types) == {AxisType.Auto}


def test_every_device_has_one_place_and_the_last_axis_runs_fastest():
    built = Mesh(2, 2, 2).build(jax.devices())
    assert [device.id for device in built.devices.flat] == [d.id for d in jax.devices()]


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (Mesh(fsdp=3), "mesh (replica=1, fsdp=3, tensor=1) needs 3 devices, and there are 8"),
        (
            Mesh(replica=3),
            "mesh (replica=3, fsdp=-1, tensor=1) needs 3 devices, or a multiple of that, and "
            "there are 8",
        ),
        (Mesh(fsdp=4), "needs 4 devices, and there are 8"),
        (Mesh(fsdp=16), "needs 16 devices, and there are 8"),
        (Mesh(replica=-1), "one at most may be -1"),
        (Mesh(tensor=0), "sizes are positive"),
        (Mesh(fsdp=-2), "sizes are positive"),
    ],
)
def test_a_mesh_that_cannot_be_is_one_line(mesh: Mesh, message: str):
    with pytest.raises(InputError) as error:
        mesh.build(jax.devices())
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_mesh_for_two_says_that_there_is_one():
    with pytest.raises(
        InputError, match=r"needs 2 devices, or a multiple of that, and there is 1$"
    ):
        Mesh(tensor=2).sizes(1)
    with pytest.raises(InputError, match=r"needs 1 device, and there are 2$"):
        Mesh(fsdp=1).sizes(2)


@pytest.fixture
def arranged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The calls that ask JAX for the physical order of TPUs; any order serves as the answer."""
    calls = []

    def arrange(*arguments: Any) -> np.ndarray:
        calls.append(arguments)
        sizes = np.prod([sizes for sizes in arguments if isinstance(sizes, tuple)], axis=0)
        return np.array(jax.devices()).reshape(sizes)

    monkeypatch.setattr(mesh_utils, "create_device_mesh", arrange)
    monkeypatch.setattr(mesh_utils, "create_hybrid_device_mesh", arrange)
    return calls


def _tpus(num_slices: int) -> list[Any]:
    return [
        SimpleNamespace(platform="tpu", coords=(i, 0, 0), slice_index=i % num_slices)
        for i in range(8)
    ]


def test_tpus_are_arranged_by_their_links_and_slices_hold_copies(arranged):
    one, two = _tpus(1), _tpus(2)
    assert Mesh(2, 2, 2).build(one).devices.shape == (2, 2, 2)
    assert Mesh(4, 1, 2).build(two).devices.shape == (4, 1, 2)
    assert arranged == [((2, 2, 2), one), ((2, 1, 2), (2, 1, 1), two)]


def test_copies_that_are_no_multiple_of_the_slices_are_refused(arranged):
    with pytest.raises(InputError, match=r"^mesh.replica=1 is not a multiple of the 2 slices$"):
        Mesh().build(_tpus(2))
    assert arranged == []


def test_a_mesh_that_the_links_do_not_make_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> np.ndarray:
        raise NotImplementedError

    monkeypatch.setattr(mesh_utils, "create_device_mesh", refuse)
    message = r"^mesh \(replica=2, fsdp=2, tensor=2\): the links of the slice make no such mesh$"
    with pytest.raises(InputError, match=message):
        Mesh(2, 2, 2).build(_tpus(1))


def test_described_devices_without_coordinates_keep_their_order(arranged):
    devices: list[Any] = jax.devices()
    assert Mesh(2, 2, 2).build(devices).devices.ravel().tolist() == devices
    assert arranged == []


def test_logical_axes_go_to_their_mesh_axes():
    layout = _layout(2, 2, 2)
    assert layout.num_data == 4
    spec = layout.sharding(("batch", None, "heads"), (8, 5, 6)).spec
    assert spec == PartitionSpec(("replica", "fsdp"), None, "tensor")
    assert layout.sharding(("layers", "embed", "mlp"), (4, 4, 4)).spec == PartitionSpec(
        None, "fsdp", "tensor"
    )
    assert layout.sharding((), ()).spec == PartitionSpec()
    # An axis of one device divides nothing.
    assert _layout(1, 8, 1).sharding(("heads", "embed"), (4, 8)).spec == PartitionSpec(None, "fsdp")


def test_axes_that_do_not_divide_are_replicated_and_named():
    layout = _layout(1, 4, 2)
    axes = {"wide": {"kernel": ("embed", "vocab")}, "odd": {"kernel": ("embed", "vocab")}}
    axes["norm"] = {"scale": ("norm",)}
    shapes = {"wide": {"kernel": np.zeros((8, 6))}, "odd": {"kernel": np.zeros((8, 7))}}
    shapes["norm"] = {"scale": np.zeros(7)}
    assert layout.sharding(("embed", "vocab"), (8, 7)).spec == PartitionSpec("fsdp", None)
    assert layout.undivided(axes, shapes) == ["odd/kernel"]
    assert _layout(num_devices=1).undivided(axes, shapes) == []
    tree = layout.tree(axes, shapes)
    assert tree["odd"]["kernel"].spec == PartitionSpec("fsdp", None)
    assert tree["norm"]["scale"].is_fully_replicated


def test_shards_hold_what_the_layout_says():
    layout = _layout(2, 2, 2)
    x = np.arange(64, dtype=np.float32).reshape(8, 8)
    y = jax.device_put(x, layout.sharding(("embed", "vocab"), x.shape))
    assert {shard.data.shape for shard in y.addressable_shards} == {(4, 4)}
    by_part = {str(shard.index) for shard in y.addressable_shards}
    assert len(by_part) == 4  # four parts, each on both replicas
    np.testing.assert_array_equal(y, x)


def test_rows_of_a_batch_reach_the_devices_in_order():
    layout = _layout(2, 2, 2)
    np.testing.assert_array_equal(layout.local_rows(12), np.arange(12))
    rows = {"tokens": np.arange(24, dtype=np.int32).reshape(12, 2)}
    batch = layout.put(rows, 12)
    np.testing.assert_array_equal(batch["tokens"], rows["tokens"])
    assert {shard.data.shape for shard in batch["tokens"].addressable_shards} == {(3, 2)}
    spec = layout.batch_spec({"tokens": jax.ShapeDtypeStruct((12, 2), jnp.int32)})
    assert spec["tokens"].sharding == batch["tokens"].sharding
    assert math.prod(layout.mesh.shape.values()) == layout.mesh.size == 8


def test_putting_a_batch_is_an_explicit_transfer():
    layout = _layout()
    with jax.transfer_guard("disallow"):
        layout.put({"tokens": np.zeros((8, 2), np.int32)}, 8)


def test_a_function_is_run_by_each_device_on_its_own_part():
    """Axes that the mesh does not divide are whole on every device."""
    x, w = jnp.arange(48.0).reshape(4, 4, 3), jnp.arange(4.0)
    shapes = []

    def scale(x: jax.Array, w: jax.Array) -> jax.Array:
        shapes.append((x.shape, w.shape))
        return x * w[None, :, None]

    axes = [("batch", "heads", "mlp"), ("heads",)]
    for layout in (_layout(1, 2, 4), _layout(1, 1, 1, num_devices=1), _layout(1, 2, 1, 2)):
        y = jax.jit(lambda *arrays, on=layout: on.shard(scale, arrays, axes))(x, w)
        np.testing.assert_array_equal(y, x * w[None, :, None])
    assert shapes == [((2, 1, 3), (1,)), ((4, 4, 3), (4,)), ((2, 4, 3), (4,))]


@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 4, 1), (2, 2, 2), (1, 1, 8)])
@pytest.mark.parametrize("width", [8, 7])
def test_rows_meet_a_whole_matrix_and_its_gradient_comes_back_in_parts(mesh, width: int):
    """In copies too, and where the mesh divides neither the matrix nor the rows."""
    layout = _layout(*mesh)
    axes = ("embed", "vocab")
    w = jnp.arange(width * 8.0).reshape(width, 8)
    for num_rows in (16, 9):
        x = jnp.arange(1.0 * num_rows * width).reshape(num_rows, width)
        seen = []

        def f(spread: Spread, part: jax.Array, x: jax.Array, seen=seen) -> tuple[jax.Array, ...]:
            @jax.custom_vjp
            def sums(part: jax.Array, x: jax.Array) -> jax.Array:
                return x @ spread.gather(part)

            def forward(part: jax.Array, x: jax.Array):
                return sums(part, x), x

            def backward(x: jax.Array, dy: jax.Array):
                return spread.scatter(x.T @ dy), None

            sums.defvjp(forward, backward)
            seen.append((part.shape, x.shape))
            y = sums(part, x)
            return jnp.sum(y)[None], y

        def objective(w: jax.Array, x: jax.Array, on=layout) -> jax.Array:
            total, y = on.by_rows(f, w, axes, [x])
            return jnp.sum(total) + 0.0 * jnp.sum(y)

        run = jax.jit(jax.value_and_grad(objective))
        placed = jax.device_put(w, layout.sharding(axes, w.shape))
        value, gradient = run(placed, x)
        assert value == jnp.sum(x @ w)
        np.testing.assert_array_equal(gradient, x.T @ jnp.ones((num_rows, 8)))
        ways = layout.num_data if num_rows == 16 else 1
        fsdp = mesh[1] if width == 8 and ways > 1 else 1
        assert set(seen) == {((width // fsdp, 8), (num_rows // ways, width))}


@pytest.mark.parametrize("mesh", [(2, 2, 2), (4, 2, 1)])
def test_copies_compute_alone_and_are_summed_at_the_end(mesh):
    """The devices of a copy divide its rows, also where all devices could not."""
    layout = _layout(*mesh)
    x = np.arange(32.0, dtype=np.float32).reshape(8, 4)
    shapes, parts = [], []

    def scale(x: jax.Array, w: jax.Array) -> jax.Array:
        parts.append(x.shape)
        return x * w[None]

    def sums(
        params: jax.Array, batch: dict[str, jax.Array], rng: jax.Array
    ) -> dict[str, jax.Array]:
        shapes.append(batch["x"].shape)
        rows = layout.constrain_batch(batch["x"])
        scaled = layout.shard(scale, [rows, params], [("batch", "mlp"), ("mlp",)])
        return {"sum": jnp.sum(scaled, axis=0), "count": jnp.float32(len(rows))}

    run = jax.jit(layout.by_copy(sums))
    found = run(jnp.arange(4.0), {"x": x}, jax.random.key(0))
    np.testing.assert_array_equal(found["sum"], (x * np.arange(4)).sum(axis=0))
    assert found["count"] == 8
    assert set(shapes) == {(8 // mesh[0], 4)}
    assert set(parts) == {(8 // mesh[0] // mesh[1], 4 // mesh[2])}
    assert _layout(1, 8).by_copy(sums) is sums


def test_constraints_place_activations_and_leave_values_alone():
    layout = _layout(1, 4, 2)
    x = np.arange(64, dtype=np.float32).reshape(8, 8)
    y = jax.jit(lambda a: layout.constrain(a, ("batch", "mlp")))(x)
    assert y.sharding.is_equivalent_to(layout.sharding(("batch", "mlp"), x.shape), 2)
    np.testing.assert_array_equal(y, x)
    pair = _layout(num_devices=2)
    spread = jax.jit(lambda a: pair.constrain(a, ("batch", None)))(x)
    assert {shard.data.shape for shard in spread.addressable_shards} == {(4, 8)}
    z = jax.jit(layout.constrain_batch)(x)
    assert {shard.data.shape for shard in z.addressable_shards} == {(2, 8)}


def test_the_description_names_devices_and_axes():
    assert _layout(2, 2, 2).describe() == ("8 x cpu as replica 2 x fsdp 2 x tensor 2, 1 process")
    assert _layout(num_devices=1).describe().startswith("1 x cpu as replica 1 x fsdp 1 x tensor 1")


@pytest.mark.parametrize(
    ("sizes", "batch_size", "expected"),
    [
        ((1, 6, 1), 16, (1, 4, 1)),
        ((2, 3, 2), 16, (2, 2, 2)),
        ((3, 2, 1), 16, (2, 2, 1)),
        ((6, 1, 4), 16, (4, 1, 4)),
        ((1, 7, 1), 16, (1, 4, 1)),  # 8 would be nearer, and there are 7
        ((4, 2, 1), 7, (1, 7, 1)),
        ((2, 2, 1), 5, (1, 1, 1)),
    ],
)
def test_the_nearest_mesh_that_divides_a_batch(
    sizes: tuple[int, ...], batch_size: int, expected: tuple[int, ...]
):
    assert nearest_sizes(sizes, batch_size) == expected
