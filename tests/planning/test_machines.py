"""Machines that are not there."""

from dataclasses import replace

import jax
import pytest

from jaxpretrain.devices.chips import CHIPS, peak_flops
from jaxpretrain.parallel.mesh import sharded_bytes
from jaxpretrain.planning.machines import open_machine, placeholder_devices
from jaxpretrain.planning.planner import make_plan
from jaxpretrain.planning.targets import parse_target
from jaxpretrain.train.program import make_program
from tests.planning.conftest import changed


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
        assert f"device_memory_size: {chip.memory_bytes}\n" in asked["target_config"]
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
