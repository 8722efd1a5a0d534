"""Every shipped config is a run that could start: it loads, resolves and builds, abstractly."""

import ast
import dataclasses
import math
import re
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.api import (
    OLMO_SIZES,
    AdamW,
    Experiment,
    InputError,
    OlmoCoreOrder,
    OlmoOrder,
    RawTokens,
    RMSNorm,
    Skip,
    load_config,
    resolve,
)
from jaxpretrain.planning.machines import parse_target
from jaxpretrain.train.program import Program, make_program

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))

# Arguments other than none at all. `olmo_yaml.py` wants a file; tests/train/test_olmo_yaml.py.
ARGUMENTS = {
    "olmo2_1b_stage2": ["42", "42069", "666"],
    "olmo2_7b_stage2": ["42", "42069", "666"],
    "olmo2_13b_stage2": ["1110-100B", "2662-100B", "6209-100B", "2662-300B"],
    "olmo2_32b_stage2": ["100B", "300B"],
    "olmo3_7b": ["stage1", "stage1_extended", "midtrain", "long_context"],
    "olmo3_32b": ["stage1", "midtrain", "long_context"],
    "olmo_ladder": ["20m", "60m", "150m", "300m", "750m", "150m-5x", "150m-0.5x-step_law"],
    "nano_ladder": ["64", "96-4x", "128-0.5x", "160-3.7x"],
}
NAMES = [file.stem for file in CONFIGS if file.stem != "olmo_yaml"]
NAMES += [f"{name}:{argument}" for name, group in ARGUMENTS.items() for argument in group]


@cache
def load(name: str) -> Experiment:
    """The resolved experiment of a config, "olmo7b" or "olmo3_7b:midtrain"."""
    file, colon, argument = name.partition(":")
    return resolve(load_config(f"{CONFIGS[0].parent / file}.py{colon}{argument}"))


@cache
def program_of(name: str) -> Program:
    """The program of a config as it stands."""
    return build(load(name))


def build(experiment: Experiment) -> Program:
    """On the devices of the tests, with a number where the config leaves one open."""
    model, train = experiment.model, experiment.train
    if model.remat == "auto":
        model = dataclasses.replace(model, remat="full")
    if train.microbatch_size == "auto":
        train = dataclasses.replace(train, microbatch_size=1)
    return make_program(dataclasses.replace(experiment, model=model, train=train), jax.devices())


@pytest.mark.parametrize("name", NAMES)
def test_every_config_resolves_and_builds_on_eight_devices(name):
    experiment = load(name)
    assert resolve(experiment) == experiment
    program = program_of(name)
    assert program.layout.mesh.size == 8
    data = experiment.data
    spec = {**data.example_spec(), **data.extra_spec()}
    assert {name: (s.shape, s.dtype) for name, s in program.batch.items()} == {
        name: ((experiment.train.batch_size, *shape), jnp.dtype(dtype))
        for name, (shape, dtype) in spec.items()
    }
    assert {p.dtype for p in jax.tree.leaves(program.state.params)} == {jnp.dtype("float32")}
    # Parameters and Adam's two moments are spread over the devices.
    for tree in (program.state.params, program.state.optimizer["adam"].mu):
        leaves = jax.tree.leaves(tree)
        local = sum(math.prod(x.sharding.shard_shape(x.shape)) for x in leaves)
        assert local < sum(x.size for x in leaves) / 7
    rate, optim = program.optimizer.learning_rate, experiment.optim
    highest = optim.schedule.peak * optim.rate_multiple(experiment.train.batch_size)
    for step in (1, experiment.train.duration):
        assert 0.0 <= rate(step) <= highest * (1 + 1e-6)
    assert rate(1) > 0.0
    facts = program.describe()
    assert all(line and "\n" not in line for lines in facts.values() for line in lines)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_config_says_how_it_is_run_and_on_what(file):
    text = file.read_text()
    assert re.search(rf"^Command .*--config=configs/{file.name}", text, re.MULTILINE)
    stated = re.search(r"^Hardware +(\S+)", text, re.MULTILINE)
    assert stated is not None
    if file.stem not in ("olmo_ladder", "olmo_yaml"):  # there it depends on the argument
        assert parse_target(stated[1].rstrip(",:")).num_devices > 0


@pytest.mark.parametrize("name", [name for name in ARGUMENTS if name != "olmo_ladder"])
def test_an_argument_that_a_config_does_not_know_is_one_line(name):
    with pytest.raises(InputError, match="there is no "):
        load(f"{name}:nothing")


@pytest.mark.parametrize("argument", ["90m", "150m-x5", "150m-0x", "150m-5x-step"])
def test_the_ladder_refuses_sizes_that_it_has_not(argument):
    with pytest.raises(InputError, match="there is no "):
        load(f"olmo_ladder:{argument}")


# --- published recipes ---

SWITCHES = {
    "AdamW": {field.name for field in dataclasses.fields(AdamW)} - {"moment_dtype", "rate_scaling"},
    "Train": {"duration", "batch_size", "on_bad_step"},
    "TextData": {"seq_len", "order", "instance_filter"},
    "replace": {"z_loss", "loss_denominator", "document_end", "remat"},  # of the variant
}
EXPLICIT = ("olmo7b", "olmo2_7b", "olmo3_7b", "olmo_ladder")
VARIANT_OF = {
    "olmo1b": "olmo_1b",
    "olmo7b": "olmo_7b",
    "olmo7b_0424": "olmo_7b_0424",
    "olmo7b_0724": "olmo_7b_0724",
    "olmo2_1b": "olmo2_1b",
    "olmo2_7b_stage2": "olmo2_7b",
    "olmo2_13b": "olmo2_13b",
    "olmo2_32b": "olmo2_32b",
    "olmo3_7b:midtrain": "olmo3_7b",
    "olmo3_32b": "olmo3_32b",
    "olmo_ladder:300m": "olmo_300m",
}
# Config -> the recipe that it loads; its own file writes out the differences alone.
RECIPE_OF = {
    "olmo1b": "olmo7b",
    "olmo7b_0424": "olmo7b",
    "olmo2_1b": "olmo2_7b",
    "olmo2_13b": "olmo2_7b",
    "olmo2_32b": "olmo2_7b",
    "olmo3_32b": "olmo3_7b",
}


@pytest.mark.parametrize("name", EXPLICIT)
def test_no_switch_of_a_published_recipe_is_set_silently(name):
    tree = ast.parse((CONFIGS[0].parent / f"{name}.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for function, switches in SWITCHES.items():
        written = [
            {keyword.arg for keyword in call.keywords}
            for call in calls
            if isinstance(call.func, ast.Name) and call.func.id == function
        ]
        assert any(switches <= names for names in written), (function, written)


@pytest.mark.parametrize("name", RECIPE_OF)
def test_what_a_config_does_not_write_is_that_of_an_explicit_recipe(name):
    """Apart from the model, whose switches are those of its row in the table of sizes."""
    tree = ast.parse((CONFIGS[0].parent / f"{name}.py").read_text())
    loaded = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert f"{RECIPE_OF[name]}.py" in [node.value for node in loaded]
    assert RECIPE_OF[name] in EXPLICIT
    written = {
        keyword.arg
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
    }
    ours, recipe = load(name), load(RECIPE_OF[name])
    for group in ("data", "optim", "train", "eval", "checkpoint"):
        mine, its = getattr(ours, group), getattr(recipe, group)
        changed = {key for key in vars(its) if getattr(mine, key) != getattr(its, key)}
        assert changed <= written, group
    assert dataclasses.replace(ours.model, remat="auto") == dataclasses.replace(
        OLMO_SIZES[VARIANT_OF[name]], remat="auto"
    )


@pytest.mark.parametrize(
    ("name", "num_params"),
    [
        ("olmo1b", 1_176_764_416),
        ("olmo7b", 6_888_095_744),
        ("olmo7b_0424", 6_888_095_744),
        ("olmo2_1b", 1_484_916_736),
        ("olmo2_7b", 7_298_617_344),
        ("olmo2_13b", 13_716_198_400),
        ("olmo2_32b", 32_234_279_936),
        ("olmo3_7b", 7_298_617_344),
        ("olmo3_32b", 32_234_279_936),
    ],
)
def test_published_sizes(name, num_params):
    assert sum(p.size for p in jax.tree.leaves(program_of(name).state.params)) == num_params


@pytest.mark.parametrize("size", ["0_3b", "0_6b", "1b", "2b"])
def test_sapiens_recipes(size):
    """300 million images; 1.5e-4 at 256, scaled to a batch of 4,096; up in 2.5 % and down to 0."""
    experiment = load(f"sapiens_{size}")
    num_steps, peak = math.ceil(300e6 / 4096), 2.4e-3
    assert experiment.train.duration == num_steps
    rate, warmup = (
        program_of(f"sapiens_{size}").optimizer.learning_rate,
        experiment.optim.schedule.warmup,
    )
    assert warmup == math.ceil(7.5e6 / 4096)
    for step, expected in {0: 1e-4 * peak, warmup: peak, num_steps: 0.0}.items():
        assert float(rate(step)) == pytest.approx(expected, abs=1e-6 * peak)


# name: (tokens of a step, steps, seed, epsilon, what decays, z-loss)
ALL = ("kernel", "embedding", "scale", "bias")
NOT_EMBEDDINGS = ("kernel", "scale", "bias")
RECIPES = {
    "olmo1b": (2**22, 739_328, 6198, 1e-5, ("kernel",), 0.0),
    "olmo7b": (2**22, 476_838, 6198, 1e-5, ("kernel",), 0.0),
    "olmo7b_0424": (2**22, 715_256, 6198, 1e-5, ALL, 0.0),
    "olmo7b_0724": (2**22, 715_256, 6198, 1e-5, ALL, 0.0),
    "olmo2_1b": (2**21, 1_907_359, 6198, 1e-8, NOT_EMBEDDINGS, 1e-4),
    "olmo2_1b_stage2:42069": (2**21, 23_852, 42069, 1e-8, NOT_EMBEDDINGS, 1e-4),
    "olmo2_7b": (2**22, 928_646, 6198, 1e-8, NOT_EMBEDDINGS, 1e-4),
    "olmo2_7b_stage2:666": (2**22, 11_931, 666, 1e-8, NOT_EMBEDDINGS, 1e-4),
    "olmo2_13b": (2**23, 596_057, 6198, 1e-8, NOT_EMBEDDINGS, 1e-4),
    "olmo2_13b_stage2:1110-100B": (2**23, 11_931, 1110, 1e-8, NOT_EMBEDDINGS, 1e-4),
    "olmo2_13b_stage2:2662-300B": (2**23, 35_773, 2662, 1e-8, NOT_EMBEDDINGS, 1e-4),
    "olmo2_32b": (2**23, 721_901, 34521, 1e-8, NOT_EMBEDDINGS, 1e-5),
    "olmo2_32b_stage2:100B": (2**23, 11_921, 34521, 1e-8, NOT_EMBEDDINGS, 1e-5),
    "olmo2_32b_stage2:300B": (2**23, 35_763, 34521, 1e-8, NOT_EMBEDDINGS, 1e-5),
    "olmo3_7b": (2**22, 597_046, 34521, 1e-8, NOT_EMBEDDINGS, 1e-5),
    "olmo3_7b:stage1_extended": (2**22, 1_413_814, 34521, 1e-8, NOT_EMBEDDINGS, 1e-5),
    "olmo3_7b:midtrain": (2**21, 47_684, 1337, 1e-8, NOT_EMBEDDINGS, 1e-5),
    "olmo3_7b:long_context": (2**22, 11_921, 34521, 1e-8, NOT_EMBEDDINGS, 1e-5),
    "olmo3_32b": (2**23, 656_000, 34521, 1e-8, NOT_EMBEDDINGS, 1e-5),
    "olmo3_32b:midtrain": (2**22, 23_842, 42069, 1e-8, NOT_EMBEDDINGS, 1e-5),
    "olmo3_32b:long_context": (2**23, 11_921, 34521, 1e-8, NOT_EMBEDDINGS, 1e-5),
}


@pytest.mark.parametrize("name", RECIPES)
def test_published_recipes(name):
    """Numbers of steps are those of the last public checkpoints, where there are any."""
    experiment = load(name)
    optim, model = experiment.optim, experiment.model
    tokens = experiment.train.batch_size * experiment.data.seq_len
    found = (tokens, experiment.train.duration, experiment.seed, optim.epsilon, optim.decayed)
    assert (*found, model.z_loss) == RECIPES[name]
    assert (optim.betas, optim.weight_decay, optim.clip_norm) == ((0.9, 0.95), 0.1, 1.0)
    is_uint16 = name.startswith(("olmo1b", "olmo7b"))
    raw = None if is_uint16 else RawTokens("uint32")
    assert (model.dtype, experiment.data.raw) == ("bfloat16", raw)
    is_core = name.startswith(("olmo2_32b", "olmo3"))
    assert type(experiment.data.order) is (OlmoCoreOrder if is_core else OlmoOrder)
    skip = Skip(not_finite=False, outliers=6.0)
    assert experiment.train.on_bad_step == (skip if is_core else "stop")
    assert model.loss_denominator == ("predictable" if is_core else "all")
    if isinstance(model.norm, RMSNorm):
        assert model.norm.rounding == ("after_scale" if is_core else "before_scale")
    assert isinstance(model.norm, RMSNorm) or not is_core
    assert optim.bias_correction == ("as_first" if name.startswith("olmo2_32b") else "by_step")


@pytest.mark.parametrize("name", RECIPES)
def test_later_stages_take_over_the_moments(name):
    """Weights alone would be warmed up anew, and no later stage has a warm-up for that."""
    is_later = any(word in name for word in ("stage2", "midtrain", "long_context"))
    assert load(name).init_with == ("optimizer" if is_later else "weights")


def test_clipping_warms_up_where_it_did():
    found = {name: load(name).optim for name in ("olmo1b", "olmo7b", "olmo7b_0424", "olmo2_7b")}
    warmups = {name: (o.clip_warmup, o.clip_warmup_factor) for name, o in found.items()}
    assert warmups == {
        "olmo1b": (0, 1.0),
        "olmo7b": (1000, 10.0),
        "olmo7b_0424": (500, 5.0),
        "olmo2_7b": (0, 1.0),
    }


@pytest.mark.parametrize(("name", "variant"), VARIANT_OF.items())
def test_published_configs_change_no_architecture(name, variant):
    """Only the loss, roundings, and what no result depends on differ from the table of sizes."""
    ours, row = load(name).model, OLMO_SIZES[variant]
    changed = {key for key in vars(row) if getattr(ours, key) != getattr(row, key)}
    recipe = {"z_loss", "loss_denominator", "residual_dtype"}
    assert changed <= {"remat", "attention", "scan_layers"} | recipe


def test_long_contexts_change_what_they_say():
    """Eight times as long, with documents apart and the rotary positions stretched."""
    short, long = load("olmo3_7b"), load("olmo3_7b:long_context")
    changed = {k for k in vars(short.model) if getattr(short.model, k) != getattr(long.model, k)}
    assert changed == {"rope", "document_end"}
    assert long.model.rope.theta == short.model.rope.theta
    assert long.data.seq_len == 8 * short.data.seq_len == long.model.rope.factor * 8192


def learning_rates(name: str, steps: list[int]) -> np.ndarray:
    experiment = load(name)
    rate = experiment.optim.learning_rate(experiment.train.duration, experiment.train.batch_size)
    return np.array([rate(s) for s in steps])


@pytest.mark.parametrize(
    ("name", "steps_and_rates"),
    [
        ("olmo1b", {1: 4.018e-5, 1000: 2.2e-4, 2000: 4e-4, 370_664: 2.2e-4, 739_328: 4e-5}),
        ("olmo7b", {1: 3.0054e-5, 5000: 3e-4, 240_919: 1.65e-4, 476_838: 3e-5}),
        ("olmo7b_0424", {1: 3.0108e-5, 2500: 3e-4, 715_256: 3e-5}),
        # Where stage 2 begins, and #887 asks about.
        ("olmo2_7b", {1: 1.5e-7, 2000: 3e-4, 928_000: 6.1499e-5, 928_646: 6.135e-5}),
        ("olmo2_7b_stage2", {5961: 6.1499e-5 * 5960 / 11_921, 11_921: 0.0, 11_931: 0.0}),
        ("olmo2_1b", {4000: 4e-4, 1_907_349: 7.4487e-5}),
        ("olmo2_13b", {1000: 9e-4, 596_047: 9e-5, 596_057: 9e-5}),
        ("olmo2_13b_stage2", {1: 9e-5 * 11_920 / 11_921, 11_921: 0.0}),
        ("olmo2_32b", {2000: 6e-4, 721_901: 6.623e-5}),
        # The two halves of OLMo-3-7B's pretraining meet.
        ("olmo3_7b", {2000: 3e-4, 597_046: 1.65e-4}),
        ("olmo3_7b:stage1_extended", {597_046: 1.65e-4, 1_413_814: 3.9325e-5, 1_668_931: 3e-5}),
        ("olmo3_7b:long_context", {200: 2.0712e-4, 11_921: 0.0}),
        ("olmo3_32b", {2000: 6e-4, 656_000: 2.0712e-4}),
    ],
)
def test_learning_rates_at_published_steps(name, steps_and_rates):
    ours = learning_rates(name, list(steps_and_rates))
    np.testing.assert_allclose(ours, list(steps_and_rates.values()), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "batch_size", "peak"),
    [
        ("20m", 64, 8.2457e-3),
        ("60m", 96, 5.7172e-3),
        ("150m", 192, 4.2125e-3),
        ("300m", 320, 3.3435e-3),
        ("750m", 576, 2.4635e-3),
    ],
)
def test_the_ladder_follows_its_rules(size, batch_size, peak):
    experiment = load(f"olmo_ladder:{size}")
    num_params = 1_000_000 * int(size.removesuffix("m"))
    assert experiment.train.batch_size == batch_size
    assert experiment.train.duration == math.ceil(20 * num_params / (batch_size * 2048))
    schedule = experiment.optim.schedule
    np.testing.assert_allclose([schedule.peak, schedule.end], [peak, 0.01 * peak], rtol=1e-4)
    assert abs(schedule.warmup * batch_size * 2048 - num_params) <= batch_size * 1024
    assert load(f"olmo_ladder:{size}-5x").train.duration > 4.99 * experiment.train.duration


def test_a_step_of_the_smallest_config_can_be_traced():
    """State and batch fit the training step, and come out as they went in."""
    from jaxpretrain.train.step import make_train_step

    program = program_of("olmo_nano")
    step = make_train_step(
        program.model,
        program.optimizer,
        program.layout,
        program.num_microbatches,
        program.experiment.train,
        (),
    )
    state, metrics = jax.eval_shape(step, program.state, program.batch)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), program.state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == shapes
    assert metrics["loss"].shape == ()
