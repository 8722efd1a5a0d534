"""Machines by name: `h100-80gb:2x8`, `tpu-v5p:8x8x8`, `cpu:8`, `local`.

GPUs are counted, or given as hosts x GPUs of each. TPUs are given by the shape of their slice, as
the cloud's consoles name it.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from jaxpretrain.config.errors import InputError, nearest
from jaxpretrain.parallel.chips import CHIPS, Chip


@dataclass(frozen=True)
class Target:
    """A machine that is planned for."""

    name: str
    """As `parse_target` reads it."""
    platform: str
    """gpu, tpu, cpu, or local: the devices at hand."""
    chip: Chip | None
    """None where it is asked or measured: local and cpu."""
    shape: tuple[int, ...]
    """(hosts, devices of each), or the shape of a TPU slice; () for local."""

    @property
    def num_devices(self) -> int:
        """Of the whole machine; not known before JAX starts for local."""
        return math.prod(self.shape)

    @property
    def num_hosts(self) -> int:
        """Computers that devices leave by a network; the chips of a TPU slice have links."""
        return self.shape[0] if self.platform in ("gpu", "cpu") else 1


def parse_target(text: str) -> Target:
    """The machine that `text` names.

    Raises:
      InputError: there is no such machine, or it comes in no such shape.
    """
    kind, colon, size = text.partition(":")
    if kind == "local":
        if colon:
            raise InputError(f"--target={text}: local takes no size: it is what is at hand")
        return Target(text, "local", None, ())
    names = ["local", "cpu", *CHIPS]
    if kind not in names and (known := _chip_meant(kind)):
        return parse_target(f"{known}{colon}{size}")
    if kind not in names:
        parts = [f"'{name}'" for name in names if kind and kind in name]
        hint = f" Did you mean {' or '.join(parts)}?" if parts else nearest(kind, names)
        hint = hint or f" Known are {', '.join(names)}."
        raise InputError(f"--target={text}: no such machine.{hint}")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size):
        example = {"cpu": "cpu:8", "gpu": f"{kind}:8 or {kind}:2x8"}
        platform = "cpu" if kind == "cpu" else CHIPS[kind].platform
        raise InputError(f"--target={text}: needs a size, as {example.get(platform, _slice(kind))}")
    sizes = tuple(int(part) for part in size.split("x"))
    if kind == "cpu":
        if len(sizes) > 1:
            raise InputError(f"--target={text}: cpu takes a number of virtual devices, as cpu:8")
        return Target(text, "cpu", None, (1, *sizes))
    chip = CHIPS[kind]
    if chip.platform == "tpu":
        return Target(text, "tpu", chip, _tpu_shape(text, kind, sizes))
    return Target(text, "gpu", chip, _gpu_shape(text, chip, sizes))


def grown(target: Target) -> Target:
    """The next larger machine of its kind: twice the devices."""
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
    """The only chip that a name such as h100, h100-sxm or a100-sxm4-80gb can mean, if there is one.

    All GPUs in the table have the SXM form; a name with another form means none of them.
    """
    plain = re.sub(r"-sxm\d?(?=-|$)", "", kind.lower())
    meant = [name for name in CHIPS if name == plain or name.startswith(f"{plain}-")]
    return meant[0] if len(meant) == 1 else None


def _gpu_shape(text: str, chip: Chip, sizes: Sequence[int]) -> tuple[int, int]:
    per_host = chip.devices_per_host
    if len(sizes) == 1:
        count = sizes[0]
        if count <= per_host:
            return 1, count
        if count % per_host:
            raise InputError(
                f"--target={text}: hosts have {per_host} GPUs, so {count} is no number of them; "
                f"HOSTSxGPUS says otherwise"
            )
        return count // per_host, per_host
    if len(sizes) != 2:
        raise InputError(f"--target={text}: a GPU machine is HOSTSxGPUS, as {chip.name}:2x8")
    num_hosts, count = sizes
    if count > per_host:
        raise InputError(f"--target={text}: hosts have at most {per_host} GPUs")
    return num_hosts, count


def _tpu_shape(text: str, kind: str, sizes: tuple[int, ...]) -> tuple[int, ...]:
    if len(sizes) != len(_slice(kind).split("x")):
        raise InputError(f"--target={text}: its slices have shapes as {_slice(kind)}")
    return sizes


def _slice(kind: str) -> str:
    """A slice of that kind of TPU, for error messages: v5p's links form a 3D torus, others' 2D."""
    return f"{kind}:4x4x4" if kind == "tpu-v5p" else f"{kind}:8x8"
