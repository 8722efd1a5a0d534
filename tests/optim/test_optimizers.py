import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpretrain.checkpoints.names import to_named
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.config.renames import upgraded
from jaxpretrain.config.serialize import from_dict
from jaxpretrain.models.layers import RMSNorm
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.optim.layers import clip_by_global_norm
from jaxpretrain.optim.optimizers import (
    PARAMETER_KINDS,
    Adafactor,
    AdamW,
    Lion,
    Muon,
    OptimizerChoice,
    RateScaling,
    decay_mask,
)
from jaxpretrain.optim.schedules import Constant, Triangular, WarmupStableDecay

SCHEDULE = WarmupStableDecay(start=0.01, peak=0.1, end=0.02, warmup=4, decay=4)
NUM_STEPS = 10

# With all that an optimizer can do; Adafactor factors the small matrices of these tests.
CHOICES = [
    AdamW(schedule=SCHEDULE),
    Lion(schedule=SCHEDULE),
    Adafactor(schedule=SCHEDULE, beta1=0.9, min_size=2, clip_rms=0.7, parameter_scale=1e-3),
    Muon(schedule=SCHEDULE, adam_rate=0.5),
]

each_optimizer = pytest.mark.parametrize("config", CHOICES, ids=lambda c: type(c).__name__)


def draw(seed: int, scale: float = 1.0) -> dict[str, Any]:
    """A tree with every kind of parameter."""
    rng = np.random.default_rng(seed)
    shapes = {"kernel": (2, 3, 4), "embedding": (5, 3), "scale": (2, 4), "bias": (2, 2)}
    leaves = {kind: np.float32(scale * rng.normal(size=s)) for kind, s in shapes.items()}
    return {"embed": {"embedding": leaves.pop("embedding")}, "blocks": {"0": leaves}}


def run(config: OptimizerChoice, params: Any, gradients: list[Any]) -> list[Any]:
    """Parameters after each update."""
    transform = config.build(NUM_STEPS, 8, params).transform
    state, trajectory = transform.init(params), []

    @jax.jit
    def step(params, state, gradient):
        updates, state = transform.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in gradients:
        params, state = step(params, state, gradient)
        trajectory.append(params)
    return trajectory


def torch_adamw(config: AdamW, params: Any, gradients: list[Any]) -> Any:
    """torch's clip_grad_norm_ and AdamW with OLMo's groups, in float64, tensor by tensor."""
    paths_and_leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    kinds = [path[-1].key for path, _ in paths_and_leaves]
    p = [np.float64(leaf) for _, leaf in paths_and_leaves]
    m, v = [np.zeros_like(x) for x in p], [np.zeros_like(x) for x in p]
    schedule, (beta1, beta2) = config.schedule, config.betas
    for s, gradient in enumerate(gradients, start=1):
        if s < 4:
            lr = schedule.start + (schedule.peak - schedule.start) * s / 4
        else:
            lr = schedule.peak - (schedule.peak - schedule.end) * max(s - 6, 0) / 4
        g = [np.float64(leaf) for leaf in jax.tree.leaves(gradient)]
        if config.clip_norm is not None:
            norm = np.sqrt(sum((x**2).sum() for x in g))
            g = [x * min(1.0, config.clip_norm / (norm + 1e-6)) for x in g]
        for i, kind in enumerate(kinds):
            if kind in config.decayed:
                p[i] = p[i] * (1 - lr * config.weight_decay)
            m[i] = beta1 * m[i] + (1 - beta1) * g[i]
            v[i] = beta2 * v[i] + (1 - beta2) * g[i] ** 2
            denominator = np.sqrt(v[i]) / np.sqrt(1 - beta2**s) + config.epsilon
            p[i] = p[i] - lr / (1 - beta1**s) * m[i] / denominator
    return jax.tree.unflatten(structure, p)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"decayed": ("kernel", "scale"), "epsilon": 1e-2},
        {"decayed": PARAMETER_KINDS, "weight_decay": 0.5, "betas": (0.5, 0.999)},
        {"decayed": (), "clip_norm": None},
        {"clip_norm": 0.1},
    ],
    ids=str,
)
def test_ten_updates_are_those_of_torch(change):
    config = dataclasses.replace(AdamW(schedule=SCHEDULE), **change)
    params = draw(0)
    # Norms from a tenth to ten: some are clipped and some are not.
    gradients = [draw(s, scale) for s, scale in enumerate(np.logspace(-2, 0.3, NUM_STEPS), 1)]
    norms = [optax.global_norm(g) for g in gradients]
    assert min(norms) < 0.1 and max(norms) > 1.0
    ours = run(config, params, gradients)[-1]
    expected = torch_adamw(config, params, gradients)
    # The corrections 1 - beta^s are small differences in float32.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, expected)


def test_the_first_update_is_number_one():
    """Adam's first step has the size of the learning rate, which at s = 0 would be zero."""
    config = AdamW(schedule=Constant(start=0.0, peak=0.8, warmup=8), weight_decay=0.0)
    params, gradient = draw(0), draw(1)
    trajectory = run(config, params, [gradient] * 9)
    for s, (before, after) in enumerate(zip([params, *trajectory], trajectory, strict=False), 1):
        moved = jax.tree.map(lambda a, b: a - b, before, after)
        expected = jax.tree.map(lambda g, s=s: min(0.1 * s, 0.8) * np.sign(g), gradient)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), moved, expected)


def test_the_reported_learning_rate_is_that_of_the_update():
    learning_rate = AdamW(schedule=SCHEDULE).build(NUM_STEPS, 8, draw(0)).learning_rate
    np.testing.assert_allclose([learning_rate(s) for s in (1, 4, 10)], [0.0325, 0.1, 0.02])


@pytest.mark.parametrize("decayed", [(), *((kind,) for kind in PARAMETER_KINDS), PARAMETER_KINDS])
@each_optimizer
def test_only_the_kinds_that_are_named_decay(config, decayed):
    """Without gradients, decay is all that moves a parameter: by learning rate times decay."""
    change: Any = {"adam_rate": 1.0} if isinstance(config, Muon) else {}
    config = dataclasses.replace(
        config, schedule=Constant(peak=0.1), weight_decay=0.5, decayed=decayed, **change
    )
    params = draw(0)
    zeros = jax.tree.map(np.zeros_like, params)
    (after,) = run(config, params, [zeros])

    def check(path, before, after):
        factor = 1 - 0.1 * 0.5 if path[-1].key in decayed else 1.0
        np.testing.assert_allclose(after, factor * before, rtol=1e-6)

    jax.tree_util.tree_map_with_path(check, params, after)


@each_optimizer
def test_a_parameter_that_no_rule_covers_is_refused(config):
    params = {"blocks": {"0": {"gain": np.ones(3)}}, "embed": {"embedding": np.ones((2, 3))}}
    message = (
        "no weight-decay rule covers parameter blocks/0/gain: "
        "its last name must be one of kernel, embedding, scale, bias"
    )
    with pytest.raises(InputError) as error:
        config.build(NUM_STEPS, 8, params)
    assert str(error.value) == message


def test_ten_updates_are_those_of_the_trainer_of_olmo():
    """scripts/make_golden_schedules.py; clipping's warm-up and its lag are among them."""
    golden = json.loads((Path(__file__).parents[1] / "golden/olmo_adamw.json").read_text())

    def tree(leaves: dict[str, Any]) -> Any:
        return {"all": {kind: np.array(leaf, np.float32) for kind, leaf in leaves.items()}}

    config = AdamW(
        schedule=Triangular(start=0.01, peak=0.1, end=0.01, warmup=4),
        epsilon=1e-5,
        decayed=("kernel",),
        clip_norm=1.0,
        clip_warmup=5,
        clip_warmup_factor=3.0,
    )
    assert len(golden["gradients"]) == NUM_STEPS
    ours = run(config, tree(golden["params"]), [tree(g) for g in golden["gradients"]])
    for after, expected in zip(ours, golden["updated"], strict=True):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after, tree(expected)
        )


def test_bias_correction_can_stay_that_of_the_first_update():
    """SkipStepAdamW as it was; with its betas, late updates are 2.236 times as large."""
    config = AdamW(schedule=Constant(), weight_decay=0.0, clip_norm=None, epsilon=0.0)
    params = draw(0)
    right, wrong = (
        dataclasses.replace(config, bias_correction=choice).build(NUM_STEPS, 8, params).transform
        for choice in ("by_step", "as_first")
    )
    state, other = right.init(params), wrong.init(params)
    update, update_larger = jax.jit(right.update), jax.jit(wrong.update)
    for t in range(1, 201):
        updates, state = update(draw(t), state, params)
        larger, other = update_larger(draw(t), other, params)
        ratio = (1 - 0.9**t) / (1 - 0.9) * math.sqrt((1 - 0.95) / (1 - 0.95**t))
        jax.tree.map(
            lambda a, b, r=ratio: np.testing.assert_allclose(b, r * a, rtol=1e-4), updates, larger
        )
    assert math.isclose(ratio, 2.236, rel_tol=1e-3)
    # Checkpoints of both count alike, so a run can go on with the other.
    assert state["adam"].count == other["adam"].count == 200


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (AdamW(epsilon=1e-5), ["adamw: betas 0.9,0.95; epsilon 1e-05; bias_correction"]),
        (AdamW(decayed=()), ["weight decay 0.1 of nothing"]),
        (AdamW(decayed=("kernel", "scale")), ["weight decay 0.1 of kernel, scale"]),
        (
            AdamW(clip_warmup=1000, clip_warmup_factor=10.0),
            ["clipped to 1, 10 times that in updates 2 to 1,001"],
        ),
        (Lion(clip_norm=None), ["lion: betas 0.9,0.99; ", "no clipping"]),
        (Muon(), ["muon: momentum 0.95;"]),
    ],
    ids=str,
)
def test_one_line_says_what_the_optimizer_does(config, words):
    line = config.describe(batch_size=8)
    assert "\n" not in line and all(word in line for word in words)


@pytest.mark.parametrize("clip_norm", [1.0, None])
@pytest.mark.parametrize(
    ("config", "names"),
    zip(
        CHOICES,
        [
            {"adam/count", "adam/mu/*", "adam/nu/*"},
            {"lion/count", "lion/mu/*"},
            {
                "adafactor/count",
                "adafactor/row/kernel",
                "adafactor/row/embedding",
                "adafactor/column/kernel",
                "adafactor/column/embedding",
                "adafactor/whole/scale",
                "adafactor/whole/bias",
                "momentum/count",
                "momentum/ema/*",
            },
            {
                "muon/inner_state/momentum/kernel",
                "adam/inner_state/count",
                *(
                    f"adam/inner_state/{m}/{kind}"
                    for m in ("mu", "nu")
                    for kind in ("embedding", "scale", "bias")
                ),
            },
        ],
        strict=True,
    ),
    ids=["adamw", "lion", "adafactor", "muon"],
)
def test_the_state_has_the_names_that_checkpoints_know(config, names, clip_norm):
    """A star stands for each kind of parameter; the paths of parameters are cut to the kind."""
    config = dataclasses.replace(config, clip_norm=clip_norm)
    params = draw(0)
    state = config.build(NUM_STEPS, 8, params).transform.init(params)
    found = {name.replace("blocks/0/", "").replace("embed/", "") for name in to_named(state)}
    expected = {name.replace("*", kind) for name in names for kind in PARAMETER_KINDS}
    assert found == expected | {"learning_rate/count"}


@each_optimizer
def test_each_layer_of_a_stack_is_updated_as_if_it_were_alone(config):
    """Five updates; the gradients of the layers differ by orders of magnitude."""
    config = dataclasses.replace(config, clip_norm=None)

    def gradient(seed: int) -> Any:
        tree = draw(seed)
        second = jax.tree.map(lambda leaf: np.stack([leaf[0], 1e-3 * leaf[1]]), tree["blocks"])
        return tree | {"blocks": second}

    def alone(tree: Any, index: int) -> Any:
        """With one layer, not stacked; but Muon knows the matrices of layers by their stack."""
        if isinstance(config, Muon):
            layer = jax.tree.map(lambda leaf: leaf[index : index + 1], tree["blocks"])
            return tree | {"blocks": layer}
        layer = jax.tree.map(lambda leaf: leaf[index], tree["blocks"]["0"])
        return {"embed": tree["embed"], "layer": layer}

    params, gradients = draw(0), [gradient(seed) for seed in range(1, 6)]
    together = run(config, params, gradients)[-1]
    for i in (0, 1):
        found = run(config, alone(params, i), [alone(g, i) for g in gradients])[-1]
        expected = alone(together, i)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


@each_optimizer
def test_first_moments_can_be_kept_in_half_the_bytes(config):
    """And nothing else is: the parameters, second moments and updates stay as they are."""
    config = dataclasses.replace(config, moment_dtype="bfloat16")
    params, gradients = draw(0), [draw(seed) for seed in range(1, 4)]
    transform = config.build(NUM_STEPS, 8, params).transform
    state, update = transform.init(params), jax.jit(transform.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype("float32")}
        firsts = {
            name: x.dtype
            for name, x in to_named(state).items()
            if {"mu", "ema", "momentum"} & set(name.split("/")) and not name.endswith("count")
        }
        assert len(firsts) == 4 and set(firsts.values()) == {jnp.dtype("bfloat16")}
        others = {x.dtype for name, x in to_named(state).items() if name not in firsts}
        assert others <= {jnp.dtype("float32"), jnp.dtype("int32")}
    whole = run(dataclasses.replace(config, moment_dtype="float32"), params, gradients)[-1]
    if not isinstance(config, Lion):  # a sign may differ, and then all of an update does
        half = run(config, params, gradients)[-1]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-3), half, whole)


def test_lion_takes_the_sign_of_two_momenta():
    """Chen et al., algorithm 2, in float64: the momentum that is kept decays more slowly."""
    config = Lion(schedule=Constant(peak=0.1), betas=(0.6, 0.9), decayed=PARAMETER_KINDS)
    config = dataclasses.replace(config, clip_norm=None)
    params, gradients = draw(0), [draw(seed) for seed in range(1, 6)]

    def lion(p: Any, *gradients: Any) -> np.ndarray:
        p, m = np.float64(p), np.zeros_like(p, np.float64)
        for g in map(np.float64, gradients):
            p -= 0.1 * (np.sign(0.6 * m + 0.4 * g) + 0.1 * p)
            m = 0.9 * m + 0.1 * g
        return p

    ours = run(config, params, gradients)[-1]
    expected = jax.tree.map(lion, params, *gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, expected)


def test_muon_leaves_to_adamw_what_is_no_matrix_of_a_layer():
    """At its own learning rate, decay included; a head is a kernel and none of the layers'."""
    schedule = Constant(peak=0.1)
    muon = Muon(schedule=schedule, adam_rate=0.3, decayed=PARAMETER_KINDS, clip_norm=None)
    adamw = AdamW(schedule=Constant(peak=0.03), decayed=PARAMETER_KINDS, clip_norm=None)

    def with_head(tree: Any) -> Any:
        return tree | {"head": {"kernel": tree["embed"]["embedding"].T}}

    params, *gradients = [with_head(draw(seed)) for seed in range(6)]
    ours, theirs = (run(config, params, gradients)[-1] for config in (muon, adamw))
    for tree in (ours, theirs):
        tree["matrices"] = tree["blocks"]["0"].pop("kernel")
    matrices, others = ours.pop("matrices"), theirs.pop("matrices")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, theirs)
    assert np.abs(matrices - others).max() > 0.01


@pytest.mark.parametrize(
    ("traits", "decayed", "expected"),
    [
        ({}, ("kernel",), {"embedding": False, "kernel": True}),
        (
            {"norm": RMSNorm(), "qk_norm": True, "num_kv_heads": 1, "windows": (2, None)},
            ("kernel", "scale"),
            {"embedding": False, "kernel": True, "scale": True},
        ),
        ({"tied_head": True}, ("kernel",), {"embedding": False, "kernel": True}),
        (
            {"norm": RMSNorm()},
            PARAMETER_KINDS,
            {"embedding": True, "kernel": True, "scale": True},
        ),
    ],
    ids=["olmo1", "olmo2", "tied", "olmo_0424"],
)
def test_every_parameter_of_the_decoder_has_a_rule(traits, decayed, expected):
    """The optimizer is built from shapes alone, before any parameter exists."""
    config = Decoder(
        vocab_size=7, embedding_rows=8, d_model=8, num_layers=2, num_heads=2, d_ff=8, **traits
    )
    model = config.build({"tokens": ((4,), "int32")}, platform="cpu")
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    mask = decay_mask(shapes, decayed)
    assert jax.tree.structure(mask) == jax.tree.structure(shapes)
    found = {(path[-1].key, m) for path, m in jax.tree_util.tree_leaves_with_path(mask)}
    assert found == set(expected.items())

    transform = AdamW(schedule=SCHEDULE, decayed=decayed).build(NUM_STEPS, 8, shapes).transform
    state = jax.eval_shape(transform.init, shapes)
    updates, new_state = jax.eval_shape(transform.update, shapes, state, shapes)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), updates, shapes)
    assert all(jax.tree.leaves(same))
    assert jax.tree.structure(new_state) == jax.tree.structure(state)


@pytest.mark.parametrize(("batch_size", "scale"), [(128, 0.5), (1024, 4.0), (8192, 16.0)])
def test_linear_scaling_multiplies_the_rate_up_to_a_cap(batch_size: int, scale: float):
    optim = AdamW(schedule=Constant(peak=1e-3), rate_scaling=RateScaling(base_batch=256))
    assert optim.rate_multiple(batch_size) == scale
    built = optim.build(10, batch_size, {"kernel": jnp.ones((2, 2))})
    assert float(built.learning_rate(3)) == pytest.approx(scale * 1e-3)
    capped = " (the cap)" if scale == 16.0 else ""
    line = f"learning rates times {scale:g}{capped}, from batches of 256"
    assert line in optim.describe(batch_size)
    plain = AdamW(schedule=Constant(peak=1e-3)).build(10, batch_size, {"kernel": jnp.ones(2)})
    assert float(plain.learning_rate(3)) == np.float32(1e-3)


@pytest.mark.parametrize(
    "optim",
    [
        AdamW(decayed=PARAMETER_KINDS),
        Lion(decayed=PARAMETER_KINDS),
        Adafactor(decayed=PARAMETER_KINDS, min_size=2, parameter_scale=1e-3),
        Muon(decayed=PARAMETER_KINDS),
    ],
)
def test_constants_never_change(optim: Any):
    """They have no gradient, and no optimizer decays them, even if told to decay all kinds."""
    params = {"a": {"kernel": jnp.ones((4, 4))}, "positions": {"constant": jnp.ones((4, 4))}}
    grads = {"a": {"kernel": jnp.ones((4, 4))}, "positions": {"constant": jnp.zeros((4, 4))}}
    transform = (
        dataclasses.replace(optim, schedule=Constant(peak=0.1)).build(3, 8, params).transform
    )
    state, moved, update = transform.init(params), params, jax.jit(transform.update)
    for _ in range(3):
        updates, state = update(grads, state, moved)
        moved = optax.apply_updates(moved, updates)
    np.testing.assert_array_equal(moved["positions"]["constant"], params["positions"]["constant"])
    assert not np.allclose(moved["a"]["kernel"], params["a"]["kernel"])


# --- fields with other names or values in saved configs ---


@dataclasses.dataclass(frozen=True)
class Saved:
    """The part of an experiment that holds an optimizer."""

    optim: OptimizerChoice = AdamW()


@pytest.mark.parametrize(
    ("old", "expected"),
    [
        ({"class": "adamw", "beta1": 0.8, "beta2": 0.7}, AdamW(betas=(0.8, 0.7))),
        ({"class": "lion", "beta1": 0.8}, Lion(betas=(0.8, 0.99))),
        ({"class": "muon", "beta2": 0.7}, Muon(betas=(0.9, 0.7))),
        ({"class": "adafactor", "beta1": 0.8, "beta2": 0.7}, Adafactor(beta1=0.8, beta2=0.7)),
        ({"class": "adafactor", "beta1": None}, Adafactor()),
        (
            {
                "class": "adamw",
                "rate_at": "after_count",
                "rate_base_batch": None,
                "rate_scale_cap": 16.0,
                "rate_scale": None,
            },
            AdamW(),
        ),
        (
            {"class": "lion", "rate_base_batch": 128, "rate_scale_cap": 8.0, "rate_scale": 2.0},
            Lion(rate_scaling=RateScaling(128, 8.0)),
        ),
        (
            {"class": "adamw", "rate_base_batch": None, "rate_scale_cap": 16.0, "rate_scale": 2.5},
            AdamW(rate_scaling=RateScaling(1, 2.5)),  # whatever the batch, 2.5
        ),
    ],
    ids=str,
)
def test_a_saved_optimizer_of_an_earlier_version_is_read(old, expected):
    assert from_dict(Saved, upgraded({"optim": old})).optim == expected


def test_a_convention_that_is_gone_is_refused_and_not_changed():
    old = {"optim": {"class": "adamw", "rate_at": "before_count"}}
    with pytest.raises(InputError, match=r"optim\.rate_at: no such field in AdamW"):
        from_dict(Saved, upgraded(old))


@pytest.mark.parametrize(
    ("path", "now"),
    [
        ("beta1", "optim.betas.0"),
        ("beta2", "optim.betas.1"),
        ("rate_base_batch", "optim.rate_scaling=rate_scaling, then optim.rate_scaling.base_batch"),
        ("rate_scale_cap", "optim.rate_scaling=rate_scaling, then optim.rate_scaling.cap"),
        (
            "rate_scale",
            "optim.rate_scaling=rate_scaling, then optim.rate_scaling.base_batch and .cap",
        ),
        ("rate_at", "nothing; update k has the learning rate of point k of the schedule"),
    ],
)
def test_an_old_flag_of_an_optimizer_says_the_new_one(path, now):
    with pytest.raises(InputError) as error:
        apply_overrides(Saved(), [(f"optim.{path}", "1")])
    assert str(error.value) == f"--config.optim.{path} is written in another way now: {now}"


def test_betas_and_scaling_are_set_by_their_flags():
    flags = [("optim.betas.0", "0.8"), ("optim.rate_scaling", "rate_scaling")]
    config = apply_overrides(Saved(), [*flags, ("optim.rate_scaling.base_batch", "64")])
    assert config.optim == AdamW(betas=(0.8, 0.95), rate_scaling=RateScaling(64))
    adafactor = apply_overrides(Saved(), [("optim", "adafactor"), ("optim.beta1", "0.8")])
    assert adafactor.optim == Adafactor(beta1=0.8)


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_what_clipping_leaves_is_known_without_the_gradient(clip_norm: float | None):
    """As the transformation scales a gradient in updates before, in and after the warm-up."""
    optim = AdamW(clip_norm=clip_norm, clip_warmup=2, clip_warmup_factor=3.0)
    gradient = {"head": {"kernel": jnp.full((2, 2), 1.0)}}
    clip = optax.identity() if clip_norm is None else clip_by_global_norm(clip_norm, 2, 3.0)
    state = clip.init(gradient)
    for number in range(1, 5):
        clipped, state = clip.update(gradient, state)
        expected = float(clipped["head"]["kernel"][0, 0])  # pyright: ignore
        assert optim.clipped_to(number, 2.0) == pytest.approx(expected, rel=1e-6)
