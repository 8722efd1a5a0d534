"""The device mesh and the one table from logical axes to mesh axes.

Mesh axes: `replica` (data parallel copies, across slices or hosts), `fsdp` (data parallel with
parameters sharded), `tensor` (matrices split by heads, inner width and vocabulary). The name
`sequence` is reserved for context parallelism.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.ranges import Positive
from jaxpretrain.devices.memory import Device
from jaxpretrain.display.wording import count_of
from jaxpretrain.models.contract import IN_ONE, Axes, Params, Spread, is_axes

AXES = ("replica", "fsdp", "tensor")
DATA_AXES = ("replica", "fsdp")

RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": DATA_AXES,
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "mlp": "tensor",
    "norm": None,
    "layers": None,
}
"""Mesh axes of each logical axis; None: a dimension that is replicated."""

_Tree = TypeVar("_Tree")
_Size = Annotated[int, Positive] | Literal[-1]


@dataclass(frozen=True)
class Mesh:
    """The number of devices along each mesh axis; one axis may be -1 and takes what is left."""

    replica: _Size = 1
    """Copies of the model, each on its own devices."""
    fsdp: _Size = -1
    """Devices that share one copy of parameters and optimizer state, and split the batch."""
    tensor: _Size = 1
    """Devices that split every matrix product."""

    def build(self, devices: Sequence[Device]) -> jax.sharding.Mesh:
        """Returns the mesh over these devices; InputError where its axes need another number."""
        sizes = self.sizes(len(devices))
        # make_mesh would order devices by their physical links; on one axis that is all the same,
        # and where it matters (TPU) this function asks for the physical order.
        grid = _arrange(devices, sizes)
        return jax.sharding.Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))

    def sizes(self, num_devices: int) -> tuple[int, ...]:
        """Returns the devices along each of `AXES`; InputError where they need another number."""
        sizes = [self.replica, self.fsdp, self.tensor]
        asked = describe_sizes(sizes)
        if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
            raise InputError(f"mesh ({asked}): sizes are positive, and one at most may be -1")
        needed = math.prod(size for size in sizes if size != -1)
        is_open = -1 in sizes
        if num_devices % needed if is_open else num_devices != needed:
            unit = "device" if needed == 1 else "devices"
            multiple = ", or a multiple of that" if is_open else ""
            there = "there is 1" if num_devices == 1 else f"there are {num_devices}"
            raise InputError(f"mesh ({asked}) needs {needed} {unit}{multiple}, and {there}")
        return tuple(num_devices // needed if size == -1 else size for size in sizes)


def nearest_sizes(sizes: tuple[int, ...], batch_size: int) -> tuple[int, ...]:
    """Returns the sizes of the mesh, of no more devices, that divides a batch and is most like one.

    It keeps `tensor`, takes as many devices as it can, and as many copies as are nearest.
    """
    replica, fsdp, tensor = sizes
    num_data = max(n for n in range(1, replica * fsdp + 1) if batch_size % n == 0)
    copies = (n for n in range(1, num_data + 1) if num_data % n == 0)
    nearest = min(copies, key=lambda n: abs(n - replica))
    return nearest, num_data // nearest, tensor


def describe_sizes(sizes: Iterable[int]) -> str:
    """Returns the sizes of a mesh by the names of its axes."""
    return ", ".join(f"{name}={size}" for name, size in zip(AXES, sizes, strict=True))


def _arrange(devices: Sequence[Device], sizes: tuple[int, ...]) -> np.ndarray:
    """Returns the devices in an order in which neighbours on a mesh axis have links."""
    num_slices = count_slices(devices)
    if sizes[0] % num_slices:
        raise InputError(f"mesh.replica={sizes[0]} is not a multiple of the {num_slices} slices")
    # Devices that are only planned with may have no place in a torus.
    if getattr(devices[0], "platform", "") != "tpu" or not hasattr(devices[0], "coords"):
        return np.array(devices).reshape(sizes)
    try:
        if num_slices == 1:
            return mesh_utils.create_device_mesh(sizes, list(devices))
        inner = (sizes[0] // num_slices, *sizes[1:])
        return mesh_utils.create_hybrid_device_mesh(inner, (num_slices, 1, 1), list(devices))
    except NotImplementedError:
        raise InputError(
            f"mesh ({describe_sizes(sizes)}): the links of the slice make no such mesh"
        ) from None


def count_slices(devices: Sequence[object]) -> int:
    """Returns the number of TPU slices that devices are of; 1 for devices of another kind."""
    if getattr(devices[0], "platform", "") != "tpu":
        return 1
    return len({getattr(device, "slice_index", 0) for device in devices})


def sharded_bytes(arrays: Iterable[jax.ShapeDtypeStruct]) -> int:
    """Returns the bytes of sharded, abstract arrays that one device holds."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in arrays)


def _is_part() -> bool:
    """Returns True where what is traced runs on each device along some mesh axes."""
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def _free_axes() -> list[str]:
    """Returns the mesh axes over which XLA places the arrays that are traced: else all of them."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return [axis for axis in AXES if axis not in manual]


def _mesh_axes(name: str | None) -> tuple[str, ...]:
    """Returns the mesh axes of a logical axis."""
    target = () if name is None else RULES[name] or ()
    return (target,) if isinstance(target, str) else target


class Layout:
    """The places of arrays on a mesh, by the names of their logical axes."""

    def __init__(self, mesh: jax.sharding.Mesh) -> None:
        self.mesh = mesh
        self.num_data = math.prod(mesh.shape[axis] for axis in DATA_AXES)
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.batch = NamedSharding(mesh, PartitionSpec(DATA_AXES))

    def sharding(self, axes: Axes, shape: tuple[int, ...]) -> NamedSharding:
        """Returns the sharding of an array; dimensions that axes do not divide are replicated."""
        return NamedSharding(self.mesh, self._spec(axes, shape, AXES))

    def constrain(self, x: jax.Array, axes: Axes) -> jax.Array:
        """Pins the layout of an activation; models take this as their `Constrain`."""
        if self.mesh.size == 1:
            return x
        if _is_part():
            spec = self._spec(axes, x.shape, _free_axes())
            return jax.lax.with_sharding_constraint(x, spec)
        return jax.lax.with_sharding_constraint(x, self.sharding(axes, x.shape))

    def shard(
        self, f: Callable[..., jax.Array], arrays: Sequence[jax.Array], axes: Sequence[Axes]
    ) -> jax.Array:
        """Runs `f` by each device on its own part of arrays; models take this as their `Shard`."""
        if self.mesh.size == 1:
            return f(*arrays)
        over = _free_axes()
        specs = tuple(self._spec(a, x.shape, over) for a, x in zip(axes, arrays, strict=True))
        return self._on_each(f, over, specs, specs[0])(*arrays)

    def by_rows(
        self,
        f: Callable[..., tuple[jax.Array, ...]],
        matrix: jax.Array,
        axes: Axes,
        rows: Sequence[jax.Array],
    ) -> tuple[jax.Array, ...]:
        """Runs `f` by each data-parallel device on its rows; models take this as their `ByRows`."""
        free = _free_axes()
        data = tuple(axis for axis in DATA_AXES if axis in free and self.mesh.shape[axis] > 1)
        if not data or len(rows[0]) % math.prod(self.mesh.shape[axis] for axis in data):
            whole = tuple(None if RULES[name or "norm"] == "fsdp" else name for name in axes)
            return f(
                Spread(lambda part: self.constrain(part, whole), lambda sum_: sum_), matrix, *rows
            )
        spec = self._spec(axes, matrix.shape, data)
        spread = IN_ONE
        if "fsdp" in spec:
            number = spec.index("fsdp")
            spread = Spread(
                lambda part: jax.lax.all_gather(part, "fsdp", axis=number, tiled=True),
                lambda sum_: jax.lax.psum_scatter(
                    sum_, "fsdp", scatter_dimension=number, tiled=True
                ),
            )
        of_rows = PartitionSpec(data)
        specs = (spec, *[of_rows] * len(rows))
        return self._on_each(partial(f, spread), data, specs, of_rows)(matrix, *rows)

    def by_copy(self, f: Callable[..., _Tree]) -> Callable[..., _Tree]:
        """Returns f(params, batch, rng), which gives sums, as computed by each copy of the model.

        Each has the rows of its own devices. The sums are added up over the copies at the end, and
        not wherever XLA would.
        """
        if self.mesh.shape["replica"] == 1:
            return f

        def of_copy(*arguments: Any) -> Any:
            return jax.tree.map(lambda x: jax.lax.psum(x, "replica"), f(*arguments))

        whole, of_rows = PartitionSpec(), PartitionSpec("replica")
        return self._on_each(of_copy, ["replica"], (whole, of_rows, whole), whole)

    def apart(self, f: Callable[..., _Tree], over: Sequence[str]) -> Callable[..., _Tree]:
        """Returns f(params, batch, rng) as computed by each group of devices for its own rows.

        The groups are those along the mesh axes `over`; results are stacked, [groups, ...]. Nothing
        is added up between groups, and each has the parameters whole along these axes.
        """

        def of_group(*arguments: Any) -> Any:
            return jax.tree.map(lambda x: x[None], f(*arguments))

        whole, of_rows = PartitionSpec(), PartitionSpec(tuple(over))
        return self._on_each(of_group, over, (whole, of_rows, whole), of_rows)

    def _on_each(
        self, f: Callable[..., Any], over: Collection[str], in_specs: Any, out_specs: Any
    ) -> Callable[..., Any]:
        """Returns `f` as it is run by each device along these mesh axes on its own part."""
        mesh = jax.sharding.get_abstract_mesh() if _is_part() else self.mesh
        # Kernels do not say how their results vary over the mesh, so that is not checked.
        return jax.shard_map(
            f,
            mesh=mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names=set(over),
            check_vma=False,
        )

    def constrain_batch(self, x: jax.Array) -> jax.Array:
        """Spreads the first axis over the data-parallel devices."""
        return self.constrain(x, ("batch",) + (None,) * (x.ndim - 1))

    def batch_spec(
        self, spec: Mapping[str, jax.ShapeDtypeStruct]
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns an abstract batch with its shardings."""
        return {
            name: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=self.batch)
            for name, s in spec.items()
        }

    def local_rows(self, batch_size: int) -> np.ndarray:
        """Returns the rows of a global batch that this process's devices hold, int64, in order."""
        slices = self.batch.addressable_devices_indices_map((batch_size,)).values()
        return np.unique(np.concatenate([np.arange(batch_size)[s] for s in slices]))

    def put(self, batch: Mapping[str, np.ndarray], batch_size: int) -> dict[str, jax.Array]:
        """Returns global arrays made of this process's rows; waits for no transfer."""
        return {
            name: jax.make_array_from_process_local_data(
                self.batch, rows, (batch_size, *rows.shape[1:])
            )
            for name, rows in batch.items()
        }

    def tree(self, axes: Params, shapes: Params) -> Params:
        """Returns the shardings of a tree of arrays, from the same tree of logical axis names."""
        return jax.tree.map(lambda a, s: self.sharding(a, s.shape), axes, shapes, is_leaf=is_axes)

    def undivided(self, axes: Params, shapes: Params) -> list[str]:
        """Returns the names of the parameters that a mesh axis should divide and cannot."""
        leaves = jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_axes)
        return [
            "/".join(str(key.key) for key in path)
            for (path, names), s in zip(leaves, jax.tree.leaves(shapes), strict=True)
            for name, size in zip(names, s.shape, strict=True)
            if size % self._ways(name)
        ]

    def describe(self) -> str:
        """Returns one line with the devices and the mesh."""
        sizes = " x ".join(f"{name} {size}" for name, size in self.mesh.shape.items())
        device = self.mesh.devices.flat[0]
        kind = getattr(device, "device_kind", "?")
        return f"{self.mesh.size} x {kind} as {sizes}, {count_of(jax.process_count(), 'process')}"

    def _spec(self, axes: Axes, shape: tuple[int, ...], over: Collection[str]) -> PartitionSpec:
        """Returns the sharding of an array over some of the mesh axes."""
        parts = []
        for name, size in zip(axes, shape, strict=True):
            along = tuple(axis for axis in _mesh_axes(name) if axis in over)
            ways = math.prod(self.mesh.shape[axis] for axis in along)
            part = along[0] if len(along) == 1 else along
            parts.append(part if ways > 1 and size % ways == 0 else None)
        return PartitionSpec(*parts)

    def _ways(self, name: str | None) -> int:
        """Returns the number of devices over which a logical axis is divided."""
        return math.prod(self.mesh.shape[axis] for axis in _mesh_axes(name))
