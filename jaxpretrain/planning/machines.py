"""Described machines: devices that compile but do not run, so none has to be there.

The compilers come with `jaxpretrain[plan-gpu]` and `jaxpretrain[plan-tpu]`. Without them devices
stand for themselves in meshes and nothing can be compiled.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from jaxpretrain.config.errors import InputError
from jaxpretrain.parallel.chips import Chip
from jaxpretrain.planning.local_chip import chip_of
from jaxpretrain.planning.targets import Target

HEADROOM = 0.05
"""Share of a device's usable memory that is left free: for fragments, collectives' buffers, what
the compiler's own account leaves out."""


@dataclass(frozen=True)
class Machine:
    """Devices to bind a program to, and what they offer."""

    devices: Sequence[Any]
    chip: Chip
    num_hosts: int
    compiles: bool
    """Whether programs can be compiled for the devices."""
    compiler_options: dict[str, bool | str | int] = field(default_factory=dict)
    """What compiling for absent devices needs; all else is as in training."""

    @property
    def limit(self) -> int:
        """Bytes of a device that a step may take."""
        return int(self.chip.usable_bytes * (1.0 - HEADROOM))


@dataclass(frozen=True)
class Stand:
    """A device without a compiler: it takes a place in a mesh."""

    id: int
    platform: str
    device_kind: str
    process_index: int = 0


def open_machine(target: Target, dtype: str) -> Machine:
    """The machine that the target names; `environment` was prepared for it.

    Raises:
      InputError: there is no such shape.
    """
    import jax

    if target.platform in ("local", "cpu"):
        devices = jax.devices()
        num_hosts = jax.process_count()
        chip = chip_of(devices[0], jax.local_device_count(), dtype)
        return Machine(devices, chip, num_hosts, compiles=True)
    assert target.chip is not None
    if target.platform == "gpu":
        devices = _gpus(target) if find_spec("jax_cuda13_plugin") else None
        # Kernels are timed on a device to choose among them; here is none.
        options: dict[str, bool | str | int] = {"xla_gpu_autotune_level": "0"}
    else:
        devices = _tpus(target) if find_spec("libtpu") else None
        options = {}
    if devices is not None:
        return Machine(devices, target.chip, target.num_hosts, True, options)
    return Machine(stands(target), target.chip, target.num_hosts, compiles=False)


def stands(target: Target) -> list[Stand]:
    """Devices of the target that nothing can be compiled for."""
    assert target.chip is not None
    kind = target.chip.device_kind
    return [Stand(i, target.platform, kind) for i in range(target.num_devices)]


def _gpus(target: Target) -> Sequence[Any]:
    import jax
    from jax.experimental import topologies

    assert target.chip is not None
    jax.devices()  # Has the plugin register what makes topologies.
    num_hosts, per_host = target.shape
    return topologies.get_topology_desc(
        platform="cuda",
        topology_name=target.chip.name,
        target_config=_target_config(target.chip),
        topology=f"1x{num_hosts}x{per_host}",  # partitions x hosts x GPUs
    ).devices


def _tpus(target: Target) -> Sequence[Any]:
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

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
    """XLA's description of a GPU, a text protocol buffer (GpuTargetConfigProto)."""
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
