"""Names of machines, machines that are not there, and the devices at hand."""

import re
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.devices.chips import CHIPS, GIB, peak_flops
from jaxpretrain.devices.memory import memory_limit
from jaxpretrain.parallel.mesh import sharded_bytes
from jaxpretrain.planning.machines import (
    find_chip,
    measure_local,
    next_larger,
    open_machine,
    parse_target,
    placeholder_devices,
)
from jaxpretrain.planning.planner import make_plan
from jaxpretrain.train.program import make_program
from tests.planning.conftest import changed


@pytest.mark.parametrize(
    ("text", "platform", "shape", "num_devices", "num_hosts"),
    [
        ("h100-80gb:1", "gpu", (1, 1), 1, 1),
        ("h100-80gb:8", "gpu", (1, 8), 8, 1),
        ("h100-80gb:16", "gpu", (2, 8), 16, 2),
        ("a100-40gb:4x4", "gpu", (4, 4), 16, 4),
        ("tpu-v5e:16x16", "tpu", (16, 16), 256, 1),
        ("tpu-v5p:8x8x8", "tpu", (8, 8, 8), 512, 1),
        ("2xtpu-v5p:4x4x4", "tpu", (4, 4, 4), 128, 2),
        ("cpu:8", "cpu", (1, 8), 8, 1),
    ],
)
def test_a_name_says_what_the_machine_has(text, platform, shape, num_devices, num_hosts):
    target = parse_target(text)
    assert (target.platform, target.shape) == (platform, shape)
    assert (target.num_devices, target.num_hosts) == (num_devices, num_hosts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a100:8", r"a100:8: no such machine. Did you mean 'a100-40gb' or 'a100-80gb'\?"),
        ("h100-pcie:8", "h100-pcie:8: no such machine."),
        ("h100", "needs a size, as h100-80gb:8 or h100-80gb:2x8"),
        ("v5e:4x4", r"Did you mean 'tpu-v5e'\?"),
        ("h20:8", r"Did you mean 'h200'\?"),
        ("abacus:8", "no such machine. Known are local, cpu, "),
        ("h100-80gb", "needs a size, as h100-80gb:8 or h100-80gb:2x8"),
        ("h100-80gb:0", "needs a size"),
        ("h100-80gb:12", "hosts have 8 GPUs, so 12 is no number of them"),
        ("h100-80gb:2x16", "hosts have at most 8 GPUs"),
        ("h100-80gb:2x2x2", "HOSTSxGPUS"),
        ("tpu-v5p:4x4", "its slices have shapes as tpu-v5p:4x4x4"),
        ("tpu-v5e:256", "its slices have shapes as tpu-v5e:8x8"),
        ("cpu:2x4", "a number of virtual devices"),
        ("local:8", "local takes no size"),
        ("2xh100:8", "2xh100-80gb:8: a number of slices before it is for TPUs alone"),
        ("0xtpu-v5e:4x4", "no such machine"),
    ],
)
def test_what_is_no_machine_is_an_error(text, message):
    with pytest.raises(InputError, match=message):
        parse_target(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("h100:8", "h100-80gb:8"),
        ("H100:2x8", "h100-80gb:2x8"),
        ("h100-sxm:8", "h100-80gb:8"),
        ("h100-sxm5-80gb:8", "h100-80gb:8"),
        ("a100-sxm4-40gb:4", "a100-40gb:4"),
        ("h200-sxm:1", "h200:1"),
    ],
)
def test_a_shorter_name_is_taken_where_one_machine_has_it(text: str, name: str):
    assert parse_target(text) == parse_target(name)


@pytest.mark.parametrize(
    ("text", "next_text"),
    [
        ("h100-80gb:4", "h100-80gb:1x8"),
        ("h100-80gb:8", "h100-80gb:2x8"),
        ("tpu-v5e:4x8", "tpu-v5e:8x8"),
        ("2xtpu-v5e:4x8", "2xtpu-v5e:8x8"),
    ],
)
def test_a_machine_grows_to_twice_its_size(text, next_text):
    larger = next_larger(parse_target(text))
    assert larger.name == next_text
    assert larger == parse_target(next_text)
    assert larger.num_devices == 2 * parse_target(text).num_devices


@pytest.mark.parametrize("name", ["h100-80gb:2x8", "a100-40gb:4", "tpu-v5p:2x2x4", "tpu-v5e:4x4"])
def test_a_program_can_be_bound_to_devices_without_a_compiler(name, decoder):
    target = parse_target(name)
    devices = placeholder_devices(target.chip, target.num_devices)
    assert len(devices) == target.num_devices
    experiment = changed(decoder, model__dtype="bfloat16", train__batch_size=16, mesh__tensor=2)
    program = make_program(experiment, devices)
    assert program.layout.num_data == target.num_devices // 2
    # All weights but norms lie on all devices: each holds its share.
    params = jax.tree.leaves(program.state.params)
    assert sharded_bytes(params) == sum(4 * p.size for p in params) // target.num_devices
    assert any("cudnn" in line or "splash" in line for line in program.describe()["model"])


def test_the_devices_at_hand_are_a_machine(decoder):
    machine = open_machine(parse_target("local"), "float32")
    assert (machine.devices, machine.compiles) == (jax.devices(), True)
    assert machine.chip.memory_bytes > 2**20
    assert machine.chip.peak_flops("float32") > 1e8


def test_every_gpu_of_the_table_can_be_described(monkeypatch: pytest.MonkeyPatch):
    described = {}

    class Topology:
        def __init__(self, **kwargs: str) -> None:
            described[kwargs["topology_name"]] = kwargs
            self.devices = []

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", Topology)
    monkeypatch.setattr("jaxpretrain.planning.machines.find_spec", lambda name: True)
    for chip in (c for c in CHIPS.values() if c.platform == "gpu"):
        machine = open_machine(parse_target(f"{chip.name}:2x8"), "bfloat16")
        assert machine.compiles
        asked = described[chip.name]
        assert (asked["platform"], asked["topology"]) == ("cuda", "1x2x8")
        # Without an allocator, XLA schedules for four fifths of it: for what a run may use.
        described_bytes = re.search(r"device_memory_size: (\d+)\n", asked["target_config"])
        assert described_bytes is not None
        assert 0.8 * int(described_bytes[1]) == pytest.approx(chip.usable_bytes, abs=1)
        assert f'device_description_str: "{chip.device_kind}"' in asked["target_config"]


@pytest.mark.parametrize(
    ("row", "name", "num_devices"),
    [
        (replace(CHIPS["h200"], name="x100-96gb", device_kind="X100"), "x100:2x8", 16),
        (replace(CHIPS["tpu-v5p"], name="tpu-v9", device_kind="TPU v9"), "tpu-v9:2x2x4", 16),
    ],
)
def test_a_new_chip_is_one_row(row, name, num_devices, decoder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(CHIPS, row.name, row)
    monkeypatch.setattr("jaxpretrain.planning.machines.find_spec", lambda name: None)
    target = parse_target(name)
    machine = open_machine(target, "bfloat16")
    assert (machine.chip, len(machine.devices), machine.compiles) == (row, num_devices, False)
    experiment = changed(decoder, model__dtype="bfloat16", model__remat="full")
    plan = make_plan(experiment, machine, None, searched=("mesh",), max_seconds=1.0)
    assert plan.best is not None
    assert plan.machine.target.name == f"{row.name}:{name.partition(':')[2]}"
    assert peak_flops(row.device_kind, "bfloat16") == row.peak_bf16_flops


def test_a_step_may_take_what_is_usable_less_the_headroom(one):
    chip = replace(one.chip, memory_bytes=1000, usable=0.8)
    assert replace(one, chip=chip).limit == 760


@dataclass(frozen=True)
class Accelerator:
    """A device at hand, as far as it is asked."""

    device_kind: str
    platform: str = "gpu"
    bytes_limit: int | None = None

    def memory_stats(self) -> dict[str, int]:
        return {} if self.bytes_limit is None else {"bytes_limit": self.bytes_limit}


def test_an_accelerator_at_hand_is_asked_for_its_memory() -> None:
    known = find_chip(Accelerator("NVIDIA H200", bytes_limit=100 * GIB), 8, jnp.bfloat16)
    assert (known.name, known.usable_bytes) == ("h200", 100 * GIB)
    assert find_chip(Accelerator("NVIDIA H200"), 8, jnp.bfloat16) == CHIPS["h200"]
    with pytest.raises(InputError, match=r"kind NVIDIA T4; known are .*NVIDIA H200"):
        find_chip(Accelerator("NVIDIA T4"), 1, jnp.bfloat16)


def test_devices_of_a_cpu_share_what_is_measured() -> None:
    chip = find_chip(jax.devices()[0], 1, jnp.float32)
    assert chip.peak_flops(jnp.float32) == chip.peak_bf16_flops
    assert 1e8 < chip.peak_flops(jnp.float32) < 1e15
    assert 1e8 < chip.memory_bandwidth < 1e13
    assert 0 < chip.usable_bytes < chip.memory_bytes == memory_limit(jax.devices()[0])
    assert measure_local(4, jnp.float32).devices_per_host == 4
