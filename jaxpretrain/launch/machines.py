"""The machine of a run on an engine: its devices, and its nodes as a cloud counts them."""

import math
from argparse import Namespace
from collections.abc import Collection

from jaxpretrain.config.errors import InputError
from jaxpretrain.planning.machines import Target, parse_target

_FLAG = "--accelerator"


def num_devices_of(flags: Namespace) -> int | None:
    """Returns the number of devices of a run; None where the flags of the engine do not tell."""
    if flags.accelerator:
        return parse_target(flags.accelerator, _FLAG).num_devices
    return flags.nodes * flags.gpus_per_node if flags.gpus_per_node else None


def read_accelerator(flags: Namespace, cloud: str, chips: Collection[str]) -> Target:
    """Returns the machine that `--accelerator` names, of a cloud that has these chips.

    Raises:
      InputError: there is no such machine, the cloud has none of its chips, or its hosts are not
        whole.
    """
    target = parse_target(flags.accelerator, _FLAG)
    where = f"{_FLAG}={flags.accelerator}"
    if target.chip is None or target.chip.name not in chips:
        raise InputError(f"{where}: {cloud} has {', '.join(chips)}")
    nodes, per_node = nodes_of(target)
    if nodes * per_node * target.num_slices != target.num_devices:
        num_chips, per_host = math.prod(target.shape), target.chip.devices_per_host
        raise InputError(f"{where}: {num_chips} chips are not whole hosts of {per_host}")
    return target


def nodes_of(target: Target) -> tuple[int, int]:
    """Returns the nodes of a slice, or of all GPUs, and the accelerators of each."""
    assert target.chip is not None
    if target.platform == "gpu":
        return target.shape[0], target.shape[1]
    chips = math.prod(target.shape)
    per_node = min(chips, target.chip.devices_per_host)
    return chips // per_node, per_node
