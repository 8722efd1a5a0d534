"""Estimated memory: state exactly, the rest as XLA lays it out, and what moves it which way."""

from dataclasses import replace
from typing import Any

import jax
import pytest

from jaxpretrain.data.images.images import ImageData
from jaxpretrain.data.text.text import TextData
from jaxpretrain.devices.chips import CHIPS
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.sapiens.variants import SAPIENS_SIZES
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.parallel.mesh import Mesh
from jaxpretrain.planning.analytic_memory import estimate_memory, weights_on_device
from jaxpretrain.planning.machines import placeholder_devices
from jaxpretrain.train.experiment import Ema, Experiment, Train
from jaxpretrain.train.memory import Memory, measured
from jaxpretrain.train.program import Program, make_program
from jaxpretrain.train.resolved import resolve

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
