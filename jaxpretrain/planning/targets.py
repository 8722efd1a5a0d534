"""Machines by name: `h100-80gb:2x8`, `tpu-v5p:8x8x8`, `cpu:8`, `local`.

GPUs are counted, or written as hosts x GPUs of each. TPUs are written by the shape of their slice,
as in the cloud's consoles.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from jaxpretrain.config.errors import InputError, nearest
from jaxpretrain.devices.chips import CHIPS, Chip


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

    @property
    def num_devices(self) -> int:
        """The devices of the whole machine; meaningless for local, which only JAX can count."""
        return math.prod(self.shape)

    @property
    def num_hosts(self) -> int:
        """The hosts with a network between them; a TPU slice counts as one, for it has links."""
        return self.shape[0] if self.platform in ("gpu", "cpu") else 1


def parse_target(text: str) -> Target:
    """Reads the name of a machine.

    Raises:
      InputError: there is no such machine, or it cannot have that shape.
    """
    kind, colon, size = text.partition(":")
    if kind == "local":
        if colon:
            raise InputError(f"--target={text}: local takes no size: it is what is at hand")
        return Target(text, "local", None, ())
    names = ["local", "cpu", *CHIPS]
    if kind not in names:
        if known := _chip_meant(kind):
            return parse_target(f"{known}{colon}{size}")
        parts = [f"'{name}'" for name in names if kind and kind in name]
        hint = f" Did you mean {' or '.join(parts)}?" if parts else nearest(kind, names)
        hint = hint or f" Known are {', '.join(names)}."
        raise InputError(f"--target={text}: no such machine.{hint}")
    chip = CHIPS.get(kind)  # None: a CPU
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size):
        raise InputError(f"--target={text}: needs a size, as {_example(chip)}")
    sizes = tuple(int(part) for part in size.split("x"))
    if chip is None:
        if len(sizes) > 1:
            raise InputError(f"--target={text}: cpu takes a number of virtual devices, as cpu:8")
        return Target(text, "cpu", None, (1, *sizes))
    shape = (_tpu_shape if chip.platform == "tpu" else _gpu_shape)(text, chip, sizes)
    return Target(text, chip.platform, chip, shape)


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
    return Target(f"{kind}:{'x'.join(map(str, shape))}", target.platform, target.chip, shape)


def _chip_meant(kind: str) -> str | None:
    """Returns the chip that a name such as h100, h100-sxm or a100-sxm4-80gb means, if just one.

    All GPUs in the table have the SXM form; a name with another form means none of them.
    """
    plain = re.sub(r"-sxm\d?(?=-|$)", "", kind.lower())
    meant = [name for name in CHIPS if name == plain or name.startswith(f"{plain}-")]
    return meant[0] if len(meant) == 1 else None


def _gpu_shape(text: str, chip: Chip, sizes: Sequence[int]) -> tuple[int, ...]:
    per_host = chip.devices_per_host
    if len(sizes) > 2:
        raise InputError(f"--target={text}: a GPU machine is HOSTSxGPUS, as {chip.name}:2x8")
    if len(sizes) == 2 and sizes[1] > per_host:
        raise InputError(f"--target={text}: hosts have at most {per_host} GPUs")
    if len(sizes) == 2 or sizes[0] <= per_host:
        return (1, *sizes)[-2:]
    if sizes[0] % per_host:
        raise InputError(
            f"--target={text}: hosts have {per_host} GPUs, so {sizes[0]} is no number of them; "
            f"HOSTSxGPUS says otherwise"
        )
    return sizes[0] // per_host, per_host


def _tpu_shape(text: str, chip: Chip, sizes: tuple[int, ...]) -> tuple[int, ...]:
    if len(sizes) != chip.slice_axes:
        raise InputError(f"--target={text}: its slices have shapes as {_example(chip)}")
    return sizes


def _example(chip: Chip | None) -> str:
    """Returns the name of a machine of such devices, for error messages."""
    if chip is None:
        return "cpu:8"
    if chip.platform == "gpu":
        return f"{chip.name}:8 or {chip.name}:2x8"
    return f"{chip.name}:{'8x8' if chip.slice_axes == 2 else '4x4x4'}"
