"""Times follow from counts and rates; what calibrates them agrees with what is published."""

from dataclasses import replace
from typing import Any

import pytest

from jaxpretrain.data.text.text import TextData
from jaxpretrain.devices.chips import CHIPS, Chip, Efficiency
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.olmo.variants import OLMO_SIZES
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.parallel.mesh import Mesh
from jaxpretrain.planning.machines import placeholder_devices
from jaxpretrain.planning.time_model import StepTime, estimate_run, estimate_time
from jaxpretrain.train.experiment import Experiment, Stage, Train
from jaxpretrain.train.program import make_program
from jaxpretrain.train.resolved import resolve
from scripts import compare_throughput as published

SMALL = Decoder(
    d_model=256, num_layers=4, num_heads=4, d_ff=1024, vocab_size=512, embedding_rows=512
)
TEXT = Experiment(
    model=SMALL,
    data=TextData(seq_len=512),
    optim=AdamW(),
    train=Train(duration="1000 steps", batch_size=64),
)
H100 = CHIPS["h100-80gb"]
PERFECT = Efficiency(products=1.0, attention=1.0)


def time(
    experiment: Experiment = TEXT,
    num_devices: int = 8,
    *,
    chip: Chip = H100,
    num_hosts: int = 1,
    efficiency: Efficiency = PERFECT,
    **changes: Any,
) -> StepTime:
    devices = placeholder_devices(chip, num_devices)
    program = make_program(resolve(replace(experiment, **changes)), devices)
    return estimate_time(program, replace(chip, efficiency=efficiency), num_hosts=num_hosts)


def test_arithmetic_is_what_is_executed_over_the_peak() -> None:
    step = time(num_devices=1, model=replace(SMALL, remat="none"))
    head = 6.0 * 64 * 512 * 256 * 512
    assert step.parts["head"] == pytest.approx(head / 989.5e12)
    assert step.parts["network"] == step.parts["recomputation"] == 0.0
    assert step.units == 64 * 512


def test_the_slowest_resource_bounds_and_all_add_up() -> None:
    step = time(model=OLMO_SIZES["olmo_1b"])
    compute = sum(s for part, s in step.parts.items() if part not in ("memory", "network"))
    totals = {"compute": compute, "memory": step.parts["memory"], "network": step.parts["network"]}
    assert step.optimistic == pytest.approx(max(totals.values()))
    assert step.expected == pytest.approx(sum(totals.values()))
    assert step.bound_by == max(totals, key=lambda resource: totals[resource]) == "compute"
    slow = replace(H100, link_bandwidth=1e9)
    assert time(model=OLMO_SIZES["olmo_1b"], chip=slow).bound_by == "network"
    slow = replace(H100, memory_bandwidth=1e10)
    assert time(model=OLMO_SIZES["olmo_1b"], chip=slow).bound_by == "memory"


def test_a_perfect_machine_would_be_used_in_full_but_for_what_is_recomputed() -> None:
    wide = replace(H100, memory_bandwidth=1e30, link_bandwidth=1e30)
    nothing_twice = time(chip=wide, model=replace(SMALL, remat="none", attention="xla_blocks"))
    assert nothing_twice.mfu == pytest.approx(1.0)
    assert 0.7 < time(chip=wide).mfu < 0.85  # nearly a fourth of the work is done again


def test_calibration_divides_rates() -> None:
    half = time(efficiency=Efficiency(products=0.5, attention=0.25))
    full = time()
    assert half.parts["mlp"] == pytest.approx(2 * full.parts["mlp"])
    assert half.parts["attention"] == pytest.approx(4 * full.parts["attention"])
    assert half.parts["memory"] == full.parts["memory"]
    assert half.optimistic == full.optimistic


def test_weights_travel_once_a_pass_and_microbatch() -> None:
    num_weights = 4 * (4 * 256**2 + 3 * 256 * 1024) + 2 * 512 * 256
    gathered = 3 * 2 * num_weights * (1 - 1 / 8)
    assert time().parts["network"] == pytest.approx(gathered / H100.link_bandwidth)
    halves = time(train=replace(TEXT.train, microbatch_size=4))
    assert halves.parts["network"] == pytest.approx(2 * gathered / H100.link_bandwidth)


def test_between_hosts_the_network_decides() -> None:
    """Sixteen devices in two hosts: half of the weights enter each host by eight adapters."""
    step = time(num_devices=16, num_hosts=2)
    num_weights = 4 * (4 * 256**2 + 3 * 256 * 1024) + 2 * 512 * 256
    between = 3 * 2 * num_weights / 2 / (8 * H100.network_bandwidth)
    inside = 3 * 2 * num_weights * (1 - 1 / 16) / H100.link_bandwidth
    assert step.parts["network"] == pytest.approx(max(between, inside))
    copies = time(num_devices=16, num_hosts=2, mesh=Mesh(replica=2, fsdp=8))
    shards = 2 * 2 * num_weights / 8 / 2 / H100.network_bandwidth
    within = 3 * 2 * num_weights * (1 - 1 / 8) / H100.link_bandwidth
    assert copies.parts["network"] == pytest.approx(within + shards)


def test_tensor_groups_add_up_the_stream() -> None:
    step = time(num_devices=2, mesh=Mesh(tensor=2), model=replace(SMALL, remat="dots"))
    stream = 4 * 64 * 512 * 256 * 2  # layers, examples, tokens, channels, bytes
    seconds = 4 * 2 * stream * (1 - 1 / 2) / H100.link_bandwidth
    assert step.parts["network"] == pytest.approx(seconds)


def test_a_run_is_its_examples() -> None:
    experiment = resolve(TEXT)
    step = replace(time(), expected=2.0)
    run = estimate_run(experiment, step, price=3.0)
    assert run.steps == 1000
    assert run.days == pytest.approx(2000 / 86400)
    assert run.device_hours == pytest.approx(2000 * 8 / 3600)
    assert run.cost == pytest.approx(3.0 * run.device_hours)
    assert estimate_run(experiment, step).cost is None
    train = replace(TEXT.train, stages=(Stage(duration="500 steps", batch_size=32),))
    staged = estimate_run(resolve(replace(TEXT, train=train)), step)
    assert staged.days == pytest.approx(0.75 * run.days)


def test_throughput_is_of_what_is_expected() -> None:
    step = replace(time(), expected=4.0)
    assert step.units_per_second == 64 * 512 / 4
    assert step.units_per_second_per_device == 64 * 512 / 4 / 8


@pytest.mark.parametrize("group", ["Hopper", "A100", "TPU"])
def test_calibrations_are_those_of_published_throughputs(group) -> None:
    rows = [row for row in published.ROWS if row.group == group and row.calibrates]
    facts = published.summary(group, {row: row.program() for row in rows})
    assert facts["used"] == facts["fitted"]
    assert facts["mean_error"] < 0.06
    assert facts["unseen_mean_error"] < 0.1
