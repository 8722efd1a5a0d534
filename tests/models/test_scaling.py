"""Each factor against its closed form, and a model at the base size against the standard one."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.checkpoints.names import to_named
from jaxpretrain.config.errors import InputError
from jaxpretrain.models.olmo.config import FullMegatron, Mitchell, Normal
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.sapiens.model import VitMae
from jaxpretrain.models.scaling import Factors, Growth
from jaxpretrain.optim.optimizers import Adafactor, AdamW, Lion, Muon
from jaxpretrain.optim.schedules import Constant

DECODER = Decoder(
    vocab_size=48,
    embedding_rows=48,
    d_model=32,
    num_layers=4,
    num_heads=4,
    d_ff=64,
    dtype="float32",
    remat="none",
    init=Normal(cutoff=None),
)
MAE = VitMae(
    patch_size=4,
    d_model=32,
    num_layers=2,
    num_heads=4,
    d_ff=64,
    decoder_d_model=16,
    decoder_num_layers=2,
    decoder_num_heads=2,
    dtype="float32",
    remat="none",
)
BASES = {
    "mup": {"scaling": "mup", "base_width": 32},
    "completep": {"scaling": "completep", "base_width": 32, "base_depth": 4},
}
OPTIMIZERS = [kind(schedule=Constant(peak=1e-2)) for kind in (AdamW, Lion, Muon)]


def built(config):
    example = {"tokens": ((12,), "int32")}
    if isinstance(config, VitMae):
        example = {"images": ((16, 16, 3), "uint8")}
    return config.build(example, platform="cpu")


def batch_of(config) -> Any:
    draw = np.random.default_rng(0)
    if isinstance(config, VitMae):
        return {"images": draw.integers(255, size=(4, 16, 16, 3)).astype(np.uint8)}
    return {"tokens": draw.integers(48, size=(4, 12)).astype(np.int32)}


def trained(config, optim, num_steps: int = 2):
    """The loss and the weights after some steps."""
    model, batch, rng = built(config), batch_of(config), jax.random.key(7)
    params = jax.jit(model.init)(jax.random.key(1))
    optimizer = optim.build(10, 4, params, model.factors)
    state = jax.jit(optimizer.transform.init)(params)

    @jax.jit
    def step(params, state):
        def loss(params):
            objective, weight, _ = model.loss(params, batch, rng)
            return objective / weight

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.transform.update(grads, state, params)
        return value, jax.tree.map(jnp.add, params, updates), state

    value: Any = None
    for _ in range(num_steps):
        value, params, state = step(params, state)
    return value, params


@pytest.mark.parametrize("optim", OPTIMIZERS, ids=lambda optim: type(optim).__name__)
@pytest.mark.parametrize("config", [DECODER, MAE], ids=["decoder", "mae"])
def test_at_the_base_size_the_step_is_the_standard_one_bit_for_bit(config, optim):
    loss, params = trained(config, optim)
    kinds = BASES if isinstance(optim, AdamW) else ["completep"]
    for scaling in kinds:
        base = BASES[scaling]
        if "base_depth" in base:
            base = base | {"base_depth": config.num_layers}
        other_loss, other_params = trained(replace(config, **base), optim)
        assert float(loss) == float(other_loss)
        jax.tree.map(np.testing.assert_array_equal, params, other_params)


def test_the_factors_are_those_of_the_table():
    growth = Growth(width=4.0, depth=8.0)
    assert growth.factors("input") == Factors(epsilon=1 / 4)
    assert growth.factors("input", in_layer=True) == Factors(epsilon=1 / 32)
    assert growth.factors("output") == Factors(product=1 / 4, epsilon=1 / 4)
    assert growth.factors("fixed", in_layer=True) == Factors()
    hidden = growth.factors("hidden", in_layer=True)
    assert hidden == Factors(deviation=1 / 2, rate=1 / 4, muon_rate=1 / 2, epsilon=1 / 32)
    assert growth.branch == 1 / 8


@pytest.mark.parametrize("init", [Normal(), Mitchell(), FullMegatron()], ids=lambda i: str(i)[:6])
def test_deviations_are_those_of_the_base_size_times_the_factor(init):
    """The draws are those of the standard model of the same shapes, with another deviation."""
    wide = replace(DECODER, init=init, d_model=64, num_heads=8, d_ff=128)
    rng = jax.random.key(0)
    expected = to_named(jax.jit(built(wide).init)(rng))
    at_base = to_named(jax.jit(built(replace(DECODER, init=init)).init)(rng))
    scaled = replace(wide, scaling="mup", base_width=32)
    found = to_named(jax.jit(built(scaled).init)(rng))
    for name, array in found.items():
        if not name.endswith(("kernel", "embedding")):
            np.testing.assert_array_equal(array, expected[name])
            continue
        deviation = float(jnp.std(at_base[name]))
        factor = 0.5**0.5 if "blocks" in name else 1.0
        assert float(jnp.std(array)) == pytest.approx(factor * deviation, rel=0.1), name


def test_deviations_under_completep_are_those_of_the_base_depth():
    config = replace(DECODER, num_layers=8, init=Mitchell(cutoff=None))
    config = replace(config, scaling="completep", base_width=32, base_depth=2)
    params = built(config).init(jax.random.key(0))
    deviations = np.std(np.asarray(params["blocks"]["0"]["output"]["kernel"]), axis=(1, 2))
    expected = [(2 * 32 * (layer // 4 + 1)) ** -0.5 for layer in range(8)]
    np.testing.assert_allclose(deviations, expected, rtol=0.1)


def test_logits_are_divided_by_the_growth_of_the_width():
    scaled = replace(DECODER, scaling="mup", base_width=8)
    params = built(DECODER).init(jax.random.key(0))
    tokens = batch_of(DECODER)["tokens"]
    expected = np.asarray(built(DECODER).logits(params, tokens)) / 4
    np.testing.assert_allclose(built(scaled).logits(params, tokens), expected, rtol=1e-5, atol=1e-7)
    tied = replace(DECODER, tied_head=True)
    params = built(tied).init(jax.random.key(0))
    expected = np.asarray(built(tied).logits(params, tokens)) / 4
    scaled = replace(scaled, tied_head=True)
    np.testing.assert_allclose(built(scaled).logits(params, tokens), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("norm_position", ["before", "after"])
def test_branches_are_divided_by_the_growth_of_the_depth(norm_position):
    """One layer: what it adds to its input is a quarter of what the standard one adds."""
    config = replace(DECODER, num_layers=1, norm_position=norm_position, init=Normal(std=0.5))
    params = built(config).init(jax.random.key(0))
    params["blocks"]["0"]["down"]["kernel"] *= 0  # attention alone, since the MLP reads its output
    scaled = replace(config, scaling="completep", base_width=32, base_depth=1, num_layers=4)
    four = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x), x * 0, x * 0]), params)
    one = jax.tree.map(lambda x: x, params) | {"blocks": params["blocks"]}
    batch, key = batch_of(config), jax.random.key(0)
    added = built(config).coordinates(one, batch, key)["activation/blocks"][0]
    embedded = np.asarray(params["embed"]["embedding"])[batch["tokens"]]
    stacked = params | {"blocks": four["blocks"]}
    found = built(scaled).coordinates(stacked, batch, key)["activation/blocks"][0]
    np.testing.assert_allclose(found - embedded, (added - embedded) / 4, rtol=1e-4, atol=1e-5)


def _kind(optim) -> str:
    return f"{type(optim).__name__} {getattr(optim, 'scale', '')}".strip()


def updates_of(optim, config, num_steps: int = 1):
    """The updates of equal gradients by name, at learning rate 1 and without clipping."""
    model = built(config)
    params = jax.tree.map(jnp.ones_like, model.init(jax.random.key(0)))
    optim = replace(optim, schedule=Constant(peak=1.0), clip_norm=None)
    optimizer = optim.build(10, 4, params, model.factors)
    grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), p.shape), params)
    state = optimizer.transform.init(params)
    return to_named(optimizer.transform.update(grads, state, params)[0])


@pytest.mark.parametrize("optim", [AdamW(), Lion(), Muon(), Muon(scale="spectral")], ids=_kind)
def test_rates_and_decay_are_multiplied(optim):
    """p -= rate * (factor * direction + decay * p), with all weights one."""
    without = replace(optim, weight_decay=0.0)
    scaled = replace(DECODER, scaling="mup", base_width=8)
    expected, found = updates_of(without, DECODER), updates_of(without, scaled)
    for name, update in found.items():
        factor = 1.0
        if name.startswith("blocks") and name.endswith("kernel"):
            factor = 1 / 4
            if isinstance(optim, Muon):
                factor = 1.0 if optim.scale == "spectral" else 1 / 2
        np.testing.assert_allclose(update, factor * expected[name], rtol=1e-3, err_msg=name)
    decayed = updates_of(optim, scaled)
    for name, update in decayed.items():
        decay = optim.weight_decay if name.endswith("kernel") else 0.0
        np.testing.assert_allclose(found[name] - update, decay, atol=1e-5, err_msg=name)


def test_epsilon_shrinks_with_the_gradients():
    """Adam's first update is g / (|g| + epsilon)."""
    optim = AdamW(epsilon=1e-1, weight_decay=0.0)
    scaled = replace(DECODER, scaling="completep", base_width=8, base_depth=2)
    standard, found = updates_of(optim, DECODER), updates_of(optim, scaled)
    for name, update in found.items():
        ratio = -standard[name]
        grads = np.asarray(ratio) * 0.1 / (1 - np.abs(np.asarray(ratio)))
        in_layer, kernel = name.startswith("blocks"), name.endswith("kernel")
        epsilon = 0.1 / (8 if in_layer else 4)
        rate = 1 / 4 if in_layer and kernel else 1.0
        expected = -rate * grads / (np.abs(grads) + epsilon)
        np.testing.assert_allclose(update, expected, rtol=2e-3, atol=1e-6, err_msg=name)


def test_only_the_encoder_of_images_grows():
    scaled = replace(MAE, scaling="completep", base_width=8, base_depth=1)
    assert scaled.factors("decoder/blocks/0/query/kernel") == Factors()
    assert scaled.factors("decoder/embed/bias") == Factors()
    assert scaled.factors("decoder/embed/kernel") == Factors(product=1 / 4, epsilon=1 / 4)
    assert scaled.factors("encoder/patch/kernel") == Factors(epsilon=1 / 4)
    assert scaled.factors("encoder/blocks/0/up/kernel").rate == 1 / 4
    assert scaled.factors("encoder/blocks/0/up/bias") == Factors(epsilon=1 / 8)
    params = built(MAE).init(jax.random.key(0))
    found = built(scaled).init(jax.random.key(0))
    name = ("encoder", "patch", "kernel")
    ours, theirs = (tree[name[0]][name[1]][name[2]] for tree in (found, params))
    # Of 48 inputs and 32 outputs, of which there are 8 at the base width.
    np.testing.assert_allclose(ours, theirs * (80 / 56) ** 0.5, rtol=1e-5, atol=1e-6)
    hidden = found["encoder"]["blocks"]["0"]["up"]["kernel"]
    np.testing.assert_allclose(hidden, params["encoder"]["blocks"]["0"]["up"]["kernel"], 1e-5, 1e-6)
    jax.tree.map(np.testing.assert_array_equal, found["decoder"]["head"], params["decoder"]["head"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_width": 32}, "model.base_width=32 has no effect with model.scaling=standard"),
        ({"scaling": "mup"}, "model.scaling=mup needs model.base_width"),
        ({"scaling": "mup", "base_width": 12}, "no multiple of the head size 8"),
        ({"num_heads": 64}, "cannot divide model.d_model by model.num_heads: 32 / 64"),
        (
            {"scaling": "mup", "base_width": 8, "num_heads": 5},
            "cannot divide model.d_model by model.num_heads: 32 / 5",
        ),
        (
            {"scaling": "mup", "base_width": 8, "base_depth": 2},
            "model.base_depth=2 has no effect with model.scaling=mup; set model.scaling",
        ),
        ({"scaling": "completep", "base_width": 8}, "needs model.base_depth"),
    ],
)
def test_a_base_that_does_not_fit_is_refused(changes, message):
    for config in (DECODER, MAE):
        with pytest.raises(InputError, match=message):
            built(replace(config, **changes))


def test_an_optimizer_without_a_rule_is_refused():
    scaled = replace(DECODER, scaling="mup", base_width=8)
    with pytest.raises(InputError, match="no rule is known for optim=adafactor"):
        updates_of(Adafactor(), scaled)
    updates_of(Adafactor(), DECODER)


def test_start_up_tells_the_factors_in_use():
    scaled = replace(DECODER, scaling="completep", base_width=8, base_depth=2)
    text = "\n".join(built(scaled).describe())
    assert "scaling completep: 4 times the width 8, 2 times the depth 2" in text
    assert "residual branches x 0.5" in text
    assert (
        "matrices of layers: deviation x 0.5, product x 1, epsilon x 0.125, learning rate x 0.25, "
        "weight decay x 4 (Muon: learning rate x 0.5, weight decay x 2; with scale=spectral both "
        "x 1)" in text
    )
    assert "norms: deviation x 1, product x 1, epsilon x 0.25 (in layers 0.125), learning" in text
    assert "scaling" not in "\n".join(built(DECODER).describe())
