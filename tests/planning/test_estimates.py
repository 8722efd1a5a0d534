"""Estimated memory is near what XLA lays out; times follow from counts and rates."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from jaxpretrain.data.images.images import ImageData
from jaxpretrain.data.text.text import TextData
from jaxpretrain.devices.chips import CHIPS, Chip, Efficiency
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.olmo.variants import OLMO_SIZES
from jaxpretrain.models.sapiens.variants import SAPIENS_SIZES
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.parallel.mesh import Mesh
from jaxpretrain.planning import estimates
from jaxpretrain.planning.estimates import (
    StepTime,
    _spans_torus,
    estimate_memory,
    estimate_run,
    estimate_time,
    memory_bytes,
    weights_on_device,
)
from jaxpretrain.planning.machines import placeholder_devices
from jaxpretrain.train.experiment import Ema, Experiment, Stage, Train, resolve
from jaxpretrain.train.program import Memory, Program, make_program, measured
from scripts import compare_throughput as published

DECODER = Decoder(
    vocab_size=2048,
    embedding_rows=2048,
    d_model=128,
    num_layers=4,
    num_heads=4,
    d_ff=512,
    dtype="float32",
)
TEXT = Experiment(
    model=DECODER,
    data=TextData(seq_len=256),
    optim=AdamW(),
    train=Train(duration="10 steps", batch_size=8),
)
IMAGES = replace(
    TEXT,
    model=replace(SAPIENS_SIZES["mae_nano"], dtype="float32", patch_size=8),
    data=ImageData(size=128),
)


def program(experiment: Experiment, num_devices: int = 1, **changes: Any) -> Program:
    """On devices that are mere descriptions."""
    devices = placeholder_devices(CHIPS["h200"], num_devices)
    return make_program(resolve(replace(experiment, **changes)), devices)


def estimate(experiment: Experiment, num_devices: int = 1, **changes: Any) -> Memory:
    return estimate_memory(program(experiment, num_devices, **changes))


@pytest.mark.parametrize(
    ("experiment", "remat"),
    [(TEXT, "full"), (TEXT, "none"), (IMAGES, "full")],
    ids=["text-full", "text-none", "images-full"],
)
def test_estimates_are_near_the_compiled_program(experiment, remat) -> None:
    experiment = replace(experiment, model=replace(experiment.model, remat=remat))
    bound = make_program(resolve(experiment), jax.devices()[:1])
    real, estimated = measured(bound, bound.compile()), estimate_memory(bound)
    assert (estimated.parameters, estimated.optimizer) == (real.parameters, real.optimizer)
    assert estimated.total == pytest.approx(real.total, rel=0.25)


def test_activations_grow_with_what_is_kept() -> None:
    totals = [
        estimate(TEXT, model=replace(DECODER, remat=remat, dtype="bfloat16")).activations
        for remat in ("full", "attention", "dots", "none")
    ]
    assert totals == sorted(set(totals))


def test_microbatches_trade_activations_for_a_second_set_of_gradients() -> None:
    whole = estimate(TEXT)
    halves = estimate(TEXT, train=replace(TEXT.train, microbatch_size=4))
    assert halves.gradients == 2 * whole.gradients == 2 * whole.parameters
    assert halves.activations < whole.activations
    assert halves.other == whole.other  # the batch comes whole


def test_sharding_divides_the_state() -> None:
    alone, sharded = estimate(TEXT), estimate(TEXT, 8)
    assert sharded.parameters == pytest.approx(alone.parameters / 8, rel=0.01)
    assert sharded.optimizer == pytest.approx(alone.optimizer / 8, rel=0.01)
    copies = estimate(TEXT, 8, mesh=Mesh(replica=8, fsdp=1))
    assert copies.parameters == alone.parameters


def test_an_average_of_the_weights_counts_as_state() -> None:
    averaged = estimate(TEXT, train=replace(TEXT.train, ema=Ema(0.99)))
    assert averaged.optimizer - estimate(TEXT).optimizer == averaged.parameters


def test_weights_are_worked_with_by_layers_divided_by_tensor_alone() -> None:
    weights = weights_on_device(program(TEXT, 4, mesh=Mesh(fsdp=2, tensor=2)))
    layer = 4 * 128**2 + 3 * 128 * 512
    assert weights.largest_group == layer / 2
    assert weights.layers == 4 * layer / 2
    assert weights.ends == 2 * 2048 * 128 / 2
    pattern = replace(DECODER, windows=(64, None))
    assert weights_on_device(program(TEXT, model=pattern)).largest_group == 2 * layer


def test_the_larger_stack_counts() -> None:
    weights = weights_on_device(program(IMAGES))
    bound = program(IMAGES)
    encoder = bound.state.params["encoder"]["blocks"]["0"]
    decoder = bound.state.params["decoder"]["blocks"]["0"]
    sizes = [
        sum(x.size / x.shape[0] for x in jax.tree.leaves(stack)) for stack in (encoder, decoder)
    ]
    assert weights.largest_group == max(sizes)


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("vocab_size", [8, 2**16])
def test_activations_peak_in_the_loss_or_in_the_largest_layer(num_devices, vocab_size) -> None:
    model = replace(DECODER, vocab_size=vocab_size, embedding_rows=vocab_size, dtype="bfloat16")
    bound = program(TEXT, num_devices, model=model, train=replace(TEXT.train, batch_size=32))
    costs, weights = bound.model.costs(), weights_on_device(bound)
    examples = 32 / num_devices
    # Weights in bfloat16; where they are gathered, their gradients in float32 too.
    copy = 2 if num_devices == 1 else 6
    loss = examples * costs.loss.on_device(1) + copy * weights.ends
    layer = examples * costs.working.on_device(1) + copy * weights.largest_group
    assert (loss > layer) == (vocab_size > 8)
    kept = examples * costs.kept.on_device(1)
    assert estimate_memory(bound).activations == round(kept + max(loss, layer))


SMALL = Decoder(
    d_model=256, num_layers=4, num_heads=4, d_ff=1024, vocab_size=512, embedding_rows=512
)
TIMED = Experiment(
    model=SMALL,
    data=TextData(seq_len=512),
    optim=AdamW(),
    train=Train(duration="1000 steps", batch_size=64),
)
H100 = CHIPS["h100-80gb"]
PERFECT = Efficiency(products=1.0, attention=1.0)


def time(
    experiment: Experiment = TIMED,
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


LAYERS, ENDS = 4 * (4 * 256**2 + 3 * 256 * 1024), 2 * 512 * 256
"""Weights of the layers of `SMALL`, and of its embedding and head."""
TRAVELLING = 2 * (3 * LAYERS + 2 * ENDS - 512 * 256)
"""Bytes of weights that travel in a microbatch: those of the layers are gathered twice, and of the
embedding's gradient, only vectors of tokens travel."""


def travelling(examples: int, reduced: int = 2) -> float:
    """Bytes of a microbatch of so many examples, gradients scattered in numbers of so many."""
    wider = (reduced - 2) * (LAYERS + 512 * 256)
    return TRAVELLING + 2 * examples * 512 * 256 + wider


def test_weights_travel_once_a_pass_and_microbatch() -> None:
    gathered = travelling(8) * (1 - 1 / 8)
    assert time().parts["network"] == pytest.approx(gathered / H100.link_bandwidth)
    gathered = 2 * travelling(4) * (1 - 1 / 8)
    halves = time(train=replace(TIMED.train, microbatch_size=4))
    assert halves.parts["network"] == pytest.approx(gathered / H100.link_bandwidth)
    wide = time(model=replace(SMALL, reduce_dtype="float32"))
    gathered = travelling(8, reduced=4) * (1 - 1 / 8)
    assert wide.parts["network"] == pytest.approx(gathered / H100.link_bandwidth)


def test_between_hosts_the_network_decides() -> None:
    """Sixteen devices in two hosts: half of the weights enter each host by eight adapters."""
    step = time(num_devices=16, num_hosts=2)
    between = travelling(4) / 2 / (8 * H100.network_bandwidth)
    inside = travelling(4) * (1 - 1 / 16) / H100.link_bandwidth
    assert step.parts["network"] == pytest.approx(max(between, inside))


def test_copies_add_up_once_a_step_in_float32() -> None:
    mesh = Mesh(replica=2, fsdp=8)
    shards = 2 * 4 * (LAYERS + ENDS) / 8 / 2 / H100.network_bandwidth
    for number in (1, 2):
        train = replace(TIMED.train, microbatch_size=4 // number)
        step = time(num_devices=16, num_hosts=2, mesh=mesh, train=train)
        within = number * travelling(4 // number) * (1 - 1 / 8) / H100.link_bandwidth
        assert step.parts["network"] == pytest.approx(within + shards)


def test_products_hide_what_they_can_of_gathers() -> None:
    """Not sums of copies, and not more than products take."""
    half = Efficiency(products=1.0, attention=1.0, exposed=0.25)
    gathered = travelling(8) * (1 - 1 / 8) / H100.link_bandwidth
    assert time(efficiency=half).parts["network"] == pytest.approx(gathered / 4)
    slow = replace(H100, link_bandwidth=1e8)
    step = time(efficiency=half, chip=slow)
    gathered *= H100.link_bandwidth / 1e8
    products = sum(s for part, s in step.parts.items() if part not in ("memory", "network"))
    assert step.parts["network"] == pytest.approx(gathered - products)
    assert step.optimistic == pytest.approx(gathered)
    copies = time(efficiency=half, mesh=Mesh(replica=8, fsdp=1))
    shards = 2 * 4 * (LAYERS + ENDS) * (1 - 1 / 8) / H100.link_bandwidth
    assert copies.parts["network"] == pytest.approx(shards)


class Placed:
    """A TPU at a place of its slice."""

    def __init__(self, number: int, coords: tuple[int, ...]) -> None:
        self.id, self.coords = number, coords


@pytest.mark.parametrize(
    ("shape", "fsdp", "spans"),
    [
        ((2, 2, 2), 8, True),
        ((2, 2, 2), 4, False),
        ((4, 4, 4), 64, True),
        ((4, 4, 4), 16, False),
        ((4, 8, 4), 32, False),
        ((4, 4, 1), 16, False),
    ],
)
def test_an_axis_may_need_three_dimensions_of_a_torus(shape, fsdp: int, spans: bool) -> None:
    devices = [Placed(i, place) for i, place in enumerate(np.ndindex(shape))]
    holder: Any = SimpleNamespace(shape={"fsdp": fsdp}, devices=np.empty(len(devices), object))
    holder.devices[:] = devices
    assert _spans_torus(holder) == spans


def test_nothing_spans_where_devices_have_no_places() -> None:
    assert not _spans_torus(program(TEXT, 8).layout.mesh)


def test_gathers_over_three_dimensions_of_a_torus_take_twice_as_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mesh = Mesh(replica=2, fsdp=4)
    plain = time(mesh=mesh).parts["network"]
    gathered = travelling(8) * (1 - 1 / 4) / H100.link_bandwidth
    monkeypatch.setattr(estimates, "_spans_torus", lambda mesh: True)
    # Sums over copies stay what they were.
    assert time(mesh=mesh).parts["network"] - plain == pytest.approx(gathered)


def test_half_the_microbatch_takes_hardly_longer_where_products_hide_gathers() -> None:
    """OLMo-7B on eight H100s; what is known of A100s and TPUs hides less."""
    model = replace(OLMO_SIZES["olmo_7b"], remat="dots")
    steps = {}
    for name in ("h100-80gb", "tpu-v5e"):
        for size in (4, 8):
            train = Train(duration="10 steps", batch_size=2048, microbatch_size=size)
            chip = CHIPS[name]
            given = {"model": model, "data": TextData(seq_len=2048), "train": train}
            steps[name, size] = time(chip=chip, efficiency=chip.efficiency, **given).expected
    assert 1.0 < steps["h100-80gb", 4] / steps["h100-80gb", 8] < 1.01
    assert steps["tpu-v5e", 4] / steps["tpu-v5e", 8] > 1.02


def test_pairs_of_documents_have_their_price_on_gpus() -> None:
    """Without documents, cuDNN holds them in its own memory; a CPU's caches hold a block's."""
    plain = time(num_devices=1)
    inside = time(num_devices=1, model=replace(SMALL, document_end=0))
    pairs = 4 * 4 * 64 * 512 * 513 / 2  # layers, heads, sequences
    more = inside.parts["memory"] - plain.parts["memory"]
    assert more * H100.memory_bandwidth == pytest.approx(75 * pairs)


def test_scanned_layers_move_what_they_keep() -> None:
    scanned = memory_bytes(program(TEXT, model=replace(DECODER, remat="dots")))
    unrolled = memory_bytes(program(TEXT, model=replace(DECODER, remat="dots", scan_layers=False)))
    kept = program(TEXT, model=replace(DECODER, remat="dots")).model.costs().kept
    assert scanned - unrolled == pytest.approx(4 * TEXT.train.batch_size * kept.on_device(1))


def test_tensor_groups_add_up_the_stream() -> None:
    step = time(num_devices=2, mesh=Mesh(tensor=2), model=replace(SMALL, remat="dots"))
    stream = 4 * 64 * 512 * 256 * 2  # layers, examples, tokens, channels, bytes
    seconds = 4 * 2 * stream * (1 - 1 / 2) / H100.link_bandwidth
    assert step.parts["network"] == pytest.approx(seconds)


def test_a_run_is_its_examples() -> None:
    experiment = resolve(TIMED)
    step = replace(time(), expected=2.0)
    run = estimate_run(experiment, step, price=3.0)
    assert run.steps == 1000
    assert run.days == pytest.approx(2000 / 86400)
    assert run.device_hours == pytest.approx(2000 * 8 / 3600)
    assert run.cost == pytest.approx(3.0 * run.device_hours)
    assert estimate_run(experiment, step).cost is None
    train = replace(TIMED.train, stages=(Stage(duration="500 steps", batch_size=32),))
    staged = estimate_run(resolve(replace(TIMED, train=train)), step)
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
