"""Machines by name: `h100-80gb:2x8`, `2xtpu-v5p:8x8x8`, `cpu:8` or `local`, and their devices.

GPUs are counted, or written as hosts x GPUs of each. TPUs are written by the shape of their slice,
as in the cloud's consoles, several slices with their number before the name. Their devices are
described: they compile but do not run, so none has to be there. The compilers come with
`jaxpretrain[plan-gpu]` and `jaxpretrain[plan-tpu]`. Without them, placeholder devices make up the
mesh and nothing can be compiled.
"""

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
from jax.errors import JaxRuntimeError
from jax.experimental import topologies
from jax.typing import DTypeLike

from jaxpretrain.config.errors import InputError, nearest
from jaxpretrain.devices.chips import CHIPS, Chip, Efficiency, chip_of
from jaxpretrain.devices.memory import Device, memory_limit
from jaxpretrain.parallel.mesh import count_slices

HEADROOM = 0.05
"""The share of a device's usable memory that a plan leaves free: for fragments, for buffers of
collectives, and for what the compiler does not count."""

_SCHEDULED_SHARE = 0.8
"""The share of `device_memory_size` that XLA schedules for where there is no allocator. A run has
one, whose limit it schedules for: `Chip.usable_bytes`."""


@dataclass(frozen=True)
class Target:
    """A machine to plan for."""

    name: str
    """The name that `parse_target` reads."""
    platform: str
    """The platform: gpu, tpu, cpu, or local for the devices at hand."""
    chip: Chip | None
    """The row of the table; None for local and cpu, whose chips are looked up or measured."""
    shape: tuple[int, ...]
    """Hosts and devices of each, or the shape of a TPU slice; () for local."""
    num_slices: int = 1
    """The number of TPU slices of that shape."""

    @property
    def num_devices(self) -> int:
        """The devices of the whole machine; meaningless for local, which only JAX can count."""
        return self.num_slices * math.prod(self.shape)

    @property
    def num_hosts(self) -> int:
        """The hosts with a network between them; a TPU slice counts as one, for it has links."""
        return self.shape[0] if self.platform in ("gpu", "cpu") else self.num_slices


@dataclass(frozen=True)
class Machine:
    """Devices to bind a program to, and what they offer."""

    target: Target
    devices: Sequence[Device]
    """JAX's devices, real or described, or placeholders."""
    chip: Chip
    num_hosts: int
    """The number of groups of devices with fast links inside: hosts of GPUs, or TPU slices."""
    compiles: bool
    """True where programs can be compiled for the devices."""
    compiler_options: dict[str, bool | str | int] = field(default_factory=dict)
    """The options that compiling for absent devices needs, on top of those of training."""

    @property
    def limit(self) -> int:
        """The bytes of a device that a step may take."""
        return int(self.chip.usable_bytes * (1.0 - HEADROOM))


@dataclass(frozen=True)
class PlaceholderDevice:
    """A device that takes a place in a mesh; nothing can be compiled for it."""

    id: int
    platform: str
    device_kind: str
    process_index: int = 0
    slice_index: int = 0

    def memory_stats(self) -> None:
        """Returns None: it has no memory."""


def parse_target(text: str, flag: str = "--target") -> Target:
    """Reads the name of a machine in the value of a flag.

    InputError: there is no such machine, or none of that shape.
    """
    kind, colon, size = text.partition(":")
    slices, kind = _slices_and_kind(kind)
    if kind == "local":
        if colon:
            raise InputError(f"{flag}={text}: local takes no size: it is what is at hand")
        return Target(text, "local", None, ())
    names = ["local", "cpu", *CHIPS]
    if kind not in names:
        before = f"{slices}x" if slices else ""
        if known := _chip_meant(kind):
            return parse_target(f"{before}{known}{colon}{size}", flag)
        parts = [f"'{name}'" for name in names if kind and kind in name]
        hint = f" Did you mean {' or '.join(parts)}?" if parts else nearest(kind, names)
        hint = hint or f" Known are {', '.join(names)}."
        raise InputError(f"{flag}={text}: no such machine.{hint}")
    if slices and not kind.startswith("tpu-"):
        raise InputError(f"{flag}={text}: a number of slices before it is for TPUs alone")
    chip = CHIPS.get(kind)  # None: a CPU
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size):
        raise InputError(f"{flag}={text}: needs a size, as {_example(chip)}")
    sizes = tuple(int(part) for part in size.split("x"))
    if chip is None:
        if len(sizes) > 1:
            raise InputError(f"{flag}={text}: cpu takes a number of virtual devices, as cpu:8")
        return Target(text, "cpu", None, (1, *sizes))
    if chip.platform == "gpu":
        return Target(text, "gpu", chip, _hosts_and_gpus(text, chip, sizes, flag))
    if len(sizes) != chip.slice_axes:
        raise InputError(f"{flag}={text}: its slices have shapes as {_example(chip)}")
    return Target(text, "tpu", chip, sizes, slices or 1)


def _slices_and_kind(text: str) -> tuple[int | None, str]:
    """Splits 2xtpu-v5p into the number of slices and the chip; None where there is no number."""
    found = re.fullmatch(r"([1-9]\d*)x(.+)", text)
    return (int(found[1]), found[2]) if found else (None, text)


def next_larger(target: Target) -> Target:
    """Returns the machine of the same kind with twice the devices."""
    if target.platform == "tpu":
        smallest = target.shape.index(min(target.shape))
        shape = tuple(2 * n if i == smallest else n for i, n in enumerate(target.shape))
    else:
        hosts, per_host = target.shape
        full = target.chip is None or per_host >= target.chip.devices_per_host
        shape = (2 * hosts, per_host) if full else (hosts, 2 * per_host)
    kind = target.name.partition(":")[0]
    return replace(target, name=f"{kind}:{'x'.join(map(str, shape))}", shape=shape)


def open_machine(target: Target, dtype: str) -> Machine:
    """Returns the machine that the target names; `prepare_environment` was called for it before.

    Raises InputError where a TPU slice has a shape that does not exist, or the table lacks an
    accelerator at hand.
    """
    if target.platform in ("local", "cpu"):
        devices = jax.devices()
        chip = find_chip(devices[0], jax.local_device_count(), dtype)
        return Machine(target, devices, chip, count_hosts(devices), compiles=True)
    chip = target.chip
    assert chip is not None
    is_gpu = chip.platform == "gpu"
    if find_spec("jax_cuda13_plugin" if is_gpu else "libtpu") is None:
        devices = placeholder_devices(chip, target.num_devices, target.num_slices)
        return Machine(target, devices, chip, target.num_hosts, compiles=False)
    devices = _gpus(target, chip) if is_gpu else _tpus(target)
    # Autotuning times kernels on a device, and there is none here.
    options: dict[str, bool | str | int] = {"xla_gpu_autotune_level": "0"} if is_gpu else {}
    return Machine(target, devices, chip, target.num_hosts, True, options)


def count_hosts(devices: Sequence[Device]) -> int:
    """Returns the number of groups of devices at hand with fast links: hosts, or slices of TPUs."""
    return count_slices(devices) if devices[0].platform == "tpu" else jax.process_count()


def placeholder_devices(
    chip: Chip, num_devices: int, num_slices: int = 1
) -> list[PlaceholderDevice]:
    """Returns devices of a kind that programs can be bound to but not compiled for."""
    of_slice = num_devices // num_slices
    return [
        PlaceholderDevice(i, chip.platform, chip.device_kind, slice_index=i // of_slice)
        for i in range(num_devices)
    ]


def find_chip(
    device: jax.Device,  # pyright: ignore[reportInvalidTypeForm] - jaxlib comes without stubs
    num_devices: int,
    dtype: DTypeLike,
) -> Chip:
    """Returns the chip of a device at hand, for a host whose `num_devices` all work at once.

    A GPU or TPU is looked up, InputError where the table lacks it, and asked for its memory; a CPU
    is measured.
    """
    if device.platform == "cpu":
        return measure_local(num_devices, dtype)
    if (chip := chip_of(device.device_kind)) is None:
        known = ", ".join(chip.device_kind for chip in CHIPS.values())
        raise InputError(f"cannot plan for devices of kind {device.device_kind}; known are {known}")
    limit = memory_limit(device)
    return chip if limit is None else replace(chip, memory_bytes=limit, usable=1.0)


def measure_local(num_devices: int, dtype: DTypeLike) -> Chip:
    """Measures this host's CPU as `num_devices` devices that share it; takes about a second."""
    memory = memory_limit(jax.local_devices(backend="cpu")[0])
    assert memory is not None  # known for every CPU
    rows = jnp.ones((1024, 1024), dtype)
    product = jax.jit(lambda a, b: jnp.dot(a, b, preferred_element_type=jnp.float32))
    flops = 2.0 * 1024**3 / _seconds(lambda: product(rows, rows))
    numbers = np.ones(2**25, np.float32)
    copied = np.empty_like(numbers)
    bandwidth = 2.0 * numbers.nbytes / _seconds(lambda: np.copyto(copied, numbers))
    return Chip(
        name="cpu",
        platform="cpu",
        device_kind="cpu",
        peak_bf16_flops=flops / num_devices,
        # Shares of the rate of one product alone; docs/benchmarks.md has the steps behind them.
        efficiency=Efficiency(products=0.9, attention=0.5),
        memory_bytes=memory,
        usable=0.9,  # the rest is for Python, data and the page cache
        memory_bandwidth=bandwidth / num_devices,
        # A collective between virtual devices reads and writes the same memory.
        link_bandwidth=bandwidth / 2 / num_devices,
        network_bandwidth=bandwidth / 2 / num_devices,
        devices_per_host=num_devices,
        source="measured on this host",
    )


def _seconds(run: Callable[[], object]) -> float:
    """Returns the shortest time of a call among those of 0.4 seconds, after two more."""
    for _ in range(2):
        jax.block_until_ready(run())
    times = []
    end = time.perf_counter() + 0.4
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times)


def _chip_meant(kind: str) -> str | None:
    """Returns the chip that a name such as h100, h100-sxm or a100-sxm4-80gb means, if just one.

    All GPUs in the table have the SXM form; a name with another form means none of them.
    """
    plain = re.sub(r"-sxm\d?(?=-|$)", "", kind.lower())
    meant = [name for name in CHIPS if name == plain or name.startswith(f"{plain}-")]
    return meant[0] if len(meant) == 1 else None


def _hosts_and_gpus(text: str, chip: Chip, sizes: Sequence[int], flag: str) -> tuple[int, ...]:
    per_host = chip.devices_per_host
    if len(sizes) > 2:
        raise InputError(f"{flag}={text}: a GPU machine is HOSTSxGPUS, as {chip.name}:2x8")
    if len(sizes) == 2 and sizes[1] > per_host:
        raise InputError(f"{flag}={text}: hosts have at most {per_host} GPUs")
    if len(sizes) == 2 or sizes[0] <= per_host:
        return (1, *sizes)[-2:]
    if sizes[0] % per_host:
        raise InputError(
            f"{flag}={text}: hosts have {per_host} GPUs, so {sizes[0]} is no number of them; "
            f"HOSTSxGPUS says otherwise"
        )
    return sizes[0] // per_host, per_host


def _example(chip: Chip | None) -> str:
    """Returns the name of a machine of such devices, for error messages."""
    if chip is None:
        return "cpu:8"
    if chip.platform == "gpu":
        return f"{chip.name}:8 or {chip.name}:2x8"
    return f"{chip.name}:{'8x8' if chip.slice_axes == 2 else '4x4x4'}"


def _gpus(target: Target, chip: Chip) -> Sequence[Device]:
    jax.devices()  # The plugin registers its topologies when JAX starts.
    num_hosts, per_host = target.shape
    return topologies.get_topology_desc(
        platform="cuda",
        topology_name=chip.name,
        target_config=_target_config(chip),
        topology=f"1x{num_hosts}x{per_host}",  # partitions x hosts x GPUs
    ).devices


def _tpus(target: Target) -> Sequence[Device]:
    name = target.name.partition("tpu-")[2]
    # For one slice libtpu is not told their number: its devices would name no slice then.
    slices = {"num_slices": target.num_slices} if target.num_slices > 1 else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **slices).devices
    except JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise InputError(f"--target={target.name}: libtpu knows no such slice: {reason}") from error


def _target_config(chip: Chip) -> str:
    """Returns XLA's description of a GPU, a text protocol buffer (GpuTargetConfigProto)."""
    cores = chip.cores
    assert cores is not None, f"{chip.name} is no GPU"
    major, minor = cores.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {cores.shared_per_core}
  shared_memory_per_block_optin: {cores.shared_per_block}
  threads_per_core_limit: 2048
  core_count: {cores.num_cores}
  fpus_per_core: {cores.fpus_per_core}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {int(chip.memory_bandwidth)}
  l2_cache_size: {cores.l2_bytes}
  clock_rate_ghz: {cores.clock_ghz}
  device_memory_size: {round(chip.usable_bytes / _SCHEDULED_SHARE)}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{chip.device_kind}"
"""
