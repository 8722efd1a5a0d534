"""Every shipped config is a run that could start: it loads, resolves and builds, abstractly."""

import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.config.files import load_config
from jaxpretrain.models.olmo import VARIANTS
from jaxpretrain.train.experiment import Experiment, resolve
from jaxpretrain.train.program import Program, make_program

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


def load(name: str) -> Experiment:
    """The resolved experiment of a config file."""
    return resolve(load_config(str(CONFIGS[0].parent / f"{name}.py")))


def build(experiment: Experiment) -> Program:
    return make_program(experiment, jax.devices())


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_config_resolves_and_builds_on_eight_devices(file):
    experiment = load(file.stem)
    assert resolve(experiment) == experiment
    program = build(experiment)
    assert program.layout.mesh.size == 8
    batch_size, seq_len = experiment.train.batch_size, experiment.data.seq_len
    spec = {"tokens": (batch_size, seq_len)}
    if experiment.data.source_names():
        spec["source"] = (batch_size,)
    assert {name: s.shape for name, s in program.batch.items()} == spec
    assert {s.dtype for s in program.batch.values()} == {jnp.dtype("int32")}
    assert {p.dtype for p in jax.tree.leaves(program.state.params)} == {jnp.dtype("float32")}
    # Parameters and Adam's two moments are spread over the devices.
    for tree in (program.state.params, program.state.optimizer["adam"].mu):
        leaves = jax.tree.leaves(tree)
        local = sum(math.prod(x.sharding.shard_shape(x.shape)) for x in leaves)
        assert local < sum(x.size for x in leaves) / 7
    rate = program.optimizer.learning_rate
    for step in (1, experiment.train.duration):
        assert 0.0 < rate(step) <= experiment.optim.schedule.peak * (1 + 1e-6)
    assert all(line and "\n" not in line for line in program.describe())


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_config_says_how_it_is_run_and_on_what(file):
    text = file.read_text()
    assert re.search(rf"^Command .*--config=configs/{file.name}", text, re.MULTILINE)
    assert re.search(r"^Hardware ", text, re.MULTILINE)


def test_a_step_of_the_smallest_config_can_be_traced():
    """State and batch fit the training step, and come out as they went in."""
    from jaxpretrain.train.step import make_train_step

    program = build(load("olmo_nano"))
    step = make_train_step(
        program.model, program.optimizer, program.layout, program.num_microbatches
    )
    state, metrics = jax.eval_shape(step, program.state, program.batch)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), program.state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == shapes
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize(
    ("name", "num_params"), [("olmo1b", 1_176_764_416), ("olmo7b", 6_888_095_744)]
)
def test_olmo_1_is_configured_as_published(name, num_params):
    """configs/official-0724 of allenai/OLMo; epsilon is that trainer's default."""
    experiment = load(name)
    optim = experiment.optim
    assert (optim.beta1, optim.beta2, optim.epsilon) == (0.9, 0.95, 1e-5)
    assert (optim.weight_decay, optim.decayed, optim.clip_norm) == (0.1, ("kernel",), 1.0)
    assert (experiment.train.batch_size, experiment.data.seq_len) == (2048, 2048)
    assert (experiment.seed, experiment.data.order, experiment.data.dtype) == (
        6198,
        "olmo",
        "uint16",
    )
    model = experiment.model
    assert (model.dtype, model.z_loss, model.windows) == ("bfloat16", 0.0, (None,))
    params = build(experiment).state.params
    assert sum(p.size for p in jax.tree.leaves(params)) == num_params


@pytest.mark.parametrize(("name", "variant"), [("olmo1b", "olmo_1b"), ("olmo7b", "olmo_7b")])
def test_published_configs_change_no_architecture(name, variant):
    """Only what the results do not depend on differs from the table of sizes."""
    ours, row = load(name).model, VARIANTS[variant]
    changed = {key for key in vars(row) if getattr(ours, key) != getattr(row, key)}
    assert changed <= {"remat", "attention", "scan_layers", "loss_chunk"}


def learning_rates(name: str, steps: list[int]) -> np.ndarray:
    experiment = load(name)
    rate = experiment.optim.schedule.build(experiment.train.duration)
    return np.array([rate(s) for s in steps])


def test_olmo_7b_trains_for_two_trillion_tokens_on_its_triangle():
    assert load("olmo7b").train.duration == 476_838
    ours = learning_rates("olmo7b", [1, 5000, 240_919, 476_838])
    np.testing.assert_allclose(ours, [3.0054e-5, 3e-4, 1.65e-4, 3e-5], rtol=1e-5)


def test_olmo_1b_trains_for_its_steps_on_its_cosine():
    assert load("olmo1b").train.duration == 739_328
    ours = learning_rates("olmo1b", [1, 1000, 2000, 370_664, 739_328])
    np.testing.assert_allclose(ours, [4.018e-5, 2.2e-4, 4e-4, 2.2e-4, 4e-5], rtol=1e-5)
