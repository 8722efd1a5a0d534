"""Described machines: devices that compile but do not run, so none has to be there.

The compilers come with `jaxpretrain[plan-gpu]` and `jaxpretrain[plan-tpu]`. Without them,
placeholder devices make up the mesh and nothing can be compiled.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

import jax
from jax.errors import JaxRuntimeError
from jax.experimental import topologies

from jaxpretrain.config.errors import InputError
from jaxpretrain.devices.chips import Chip
from jaxpretrain.planning.local_chip import find_chip
from jaxpretrain.planning.targets import Target

HEADROOM = 0.05
"""The share of a device's usable memory that a plan leaves free: for fragments, for buffers of
collectives, and for what the compiler does not count."""


@dataclass(frozen=True)
class Machine:
    """Devices to bind a program to, and what they offer."""

    target: Target
    devices: Sequence[object]
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


def open_machine(target: Target, dtype: str) -> Machine:
    """Returns the machine that the target names; `prepare_environment` was called for it before.

    Raises:
      InputError: the TPU slice has a shape that does not exist.
    """
    if target.platform in ("local", "cpu"):
        devices = jax.devices()
        chip = find_chip(devices[0], jax.local_device_count(), dtype)
        return Machine(target, devices, chip, jax.process_count(), compiles=True)
    assert target.chip is not None
    if target.platform == "gpu":
        devices = _gpus(target) if find_spec("jax_cuda13_plugin") else None
        # Autotuning times kernels on a device, and there is none here.
        options: dict[str, bool | str | int] = {"xla_gpu_autotune_level": "0"}
    else:
        devices = _tpus(target) if find_spec("libtpu") else None
        options = {}
    if devices is not None:
        return Machine(target, devices, target.chip, target.num_hosts, True, options)
    devices = placeholder_devices(target.chip, target.num_devices)
    return Machine(target, devices, target.chip, target.num_hosts, compiles=False)


def placeholder_devices(chip: Chip, num_devices: int) -> list[PlaceholderDevice]:
    """Returns devices of a kind that programs can be bound to but not compiled for."""
    return [PlaceholderDevice(i, chip.platform, chip.device_kind) for i in range(num_devices)]


def _gpus(target: Target) -> Sequence[object]:
    assert target.chip is not None
    jax.devices()  # The plugin registers its topologies when JAX starts.
    num_hosts, per_host = target.shape
    return topologies.get_topology_desc(
        platform="cuda",
        topology_name=target.chip.name,
        target_config=_target_config(target.chip),
        topology=f"1x{num_hosts}x{per_host}",  # partitions x hosts x GPUs
    ).devices


def _tpus(target: Target) -> Sequence[object]:
    generation, _, shape = target.name.removeprefix("tpu-").partition(":")
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=f"{generation}:{shape}"
        ).devices
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
  device_memory_size: {chip.memory_bytes}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{chip.device_kind}"
"""
