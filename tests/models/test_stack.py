import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.models import stack
from jaxpretrain.models.layers import RMSNorm
from jaxpretrain.models.masks import Mask
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.sapiens.model import VitMae


def init_layer(rng: jax.Array, layer: jax.Array, position: int) -> dict[str, jax.Array]:
    return {"w": jax.random.normal(rng, (3,)), "layer": layer, "position": jnp.int32(position)}


@pytest.mark.parametrize("pattern", [1, 2, 3, 6])
def test_layers_at_one_position_of_the_pattern_are_stacked(pattern):
    stacks = stack.init_stack(init_layer, jax.random.key(0), 6, pattern)
    assert list(stacks) == [str(p) for p in range(pattern)]
    for p in range(pattern):
        np.testing.assert_array_equal(stacks[str(p)]["layer"], np.arange(p, 6, pattern))
        np.testing.assert_array_equal(stacks[str(p)]["position"], p)


def test_a_layers_draw_does_not_depend_on_the_pattern():
    def draws(pattern: int) -> np.ndarray:
        stacks = stack.init_stack(init_layer, jax.random.key(0), 6, pattern)
        return np.stack([stacks[str(i % pattern)]["w"][i // pattern] for i in range(6)])

    assert len(np.unique(draws(1))) == 18
    np.testing.assert_array_equal(draws(1), draws(2))
    np.testing.assert_array_equal(draws(1), draws(3))


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("pattern", [1, 2, 3])
def test_layers_run_from_the_bottom_to_the_top(pattern, scan):
    stacks = stack.init_stack(init_layer, jax.random.key(0), 6, pattern)

    def apply_layer(x, params, position):
        # Not commutative, and different at each position of the pattern.
        return 2.0 * x + params["layer"] + 10.0 * position

    out = stack.apply_stack(apply_layer, jnp.float32(1.0), stacks, scan=scan)
    expected = 1.0
    for layer in range(6):
        expected = 2.0 * expected + layer + 10.0 * (layer % pattern)
    assert out == expected


def test_scanning_keeps_one_body_for_all_layers():
    stacks = stack.init_stack(init_layer, jax.random.key(0), 6, 2)

    def num_bodies(scan: bool) -> int:
        def run(x):
            return stack.apply_stack(lambda x, p, _: jnp.sin(x * p["w"]), x, stacks, scan=scan)

        return str(jax.make_jaxpr(run)(jnp.ones(3))).count(" sin ")

    assert num_bodies(scan=True) == 2
    assert num_bodies(scan=False) == 6


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("blocks/0/query/kernel", ("blocks", 0, "query/kernel")),
        ("encoder/blocks/12/up/bias", ("encoder/blocks", 12, "up/bias")),
        ("blocks/3/kernel", ("blocks", 3, "kernel")),
        ("embed/embedding", None),
        ("blocksmith/0/kernel", None),
    ],
)
def test_the_place_of_a_parameter_is_in_its_name(name, place):
    assert stack.place_of(name) == place
    assert stack.is_stacked(name) == (place is not None)


def test_a_signal_by_layer_names_its_tower():
    assert stack.tower_of("signals/grad_norm/blocks") == ""
    assert stack.tower_of("signals/attention_logit/encoder/blocks") == "encoder"
    assert stack.is_stacked("signals/grad_norm/blocks/query")
    assert not stack.is_stacked("signals/grad_norm/embed")


def test_what_layers_show_comes_from_the_bottom_to_the_top():
    stacks = stack.init_stack(init_layer, jax.random.key(0), 6, 3)

    def look(x, params, position):
        return x + 1.0, {"below": x, "layer": params["layer"]}

    x, seen = stack.observe_stack(look, jnp.float32(0.0), stacks)
    assert x == 6.0
    np.testing.assert_array_equal(seen["below"], np.arange(6))
    np.testing.assert_array_equal(seen["layer"], np.arange(6))


@pytest.mark.parametrize("num_kv_heads", [1, 4])
@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 5), (False, None)])
def test_the_largest_logit_is_that_of_all_visible_pairs(monkeypatch, num_kv_heads, causal, window):
    monkeypatch.setattr(stack, "QUERY_CHUNK", 8)  # several chunks, the last of another size
    rng = np.random.default_rng(0)
    q = rng.normal(size=(2, 21, 4, 6)).astype(np.float32)
    k = rng.normal(size=(2, 21, num_kv_heads, 6)).astype(np.float32)
    documents = np.sort(rng.integers(3, size=(2, 21)))
    scores = np.einsum("btnh,bsnh->bnts", q, np.repeat(k, 4 // num_kv_heads, axis=2)) / 6**0.5
    distance = np.arange(21)[:, None] - np.arange(21)
    seen = documents[:, :, None] == documents[:, None, :]
    if causal:
        seen = seen & (distance >= 0) & (distance < (window or 21))
    expected = scores[np.broadcast_to(seen[:, None], scores.shape)].max()
    mask = Mask(causal, window, jnp.asarray(documents))
    assert float(stack.largest_logit(q, k, mask)) == pytest.approx(float(expected), rel=1e-5)


def decoder(**changes):
    fields = {"vocab_size": 16, "embedding_rows": 16, "d_model": 16, "num_layers": 4, "d_ff": 32}
    config = Decoder(**fields, num_heads=2, windows=(4, None), dtype="float32", **changes)
    model = config.build({"tokens": ((12,), "int32")}, platform="cpu")
    return model, jax.jit(model.init)(jax.random.key(1))


TOKENS = np.random.default_rng(0).integers(16, size=(2, 12)).astype(np.int32)


def test_the_layers_of_a_decoder_are_seen_in_their_order():
    """Larger queries of one layer show there; what comes before it is as it was."""
    model, params = decoder()
    look = jax.jit(model.signals)
    before = look(params, {"tokens": TOKENS}, jax.random.key(0))
    kernel = params["blocks"]["0"]["query"]["kernel"]
    params["blocks"]["0"]["query"]["kernel"] = kernel.at[1].multiply(100.0)  # layer 2
    after = look(params, {"tokens": TOKENS}, jax.random.key(0))
    growth = after["attention_logit/blocks"] / before["attention_logit/blocks"]
    np.testing.assert_allclose(growth[:3], [1, 1, 100], rtol=1e-4)
    size = after["activation_rms/blocks"] / before["activation_rms/blocks"]
    np.testing.assert_allclose(size[:2], 1, rtol=1e-5)
    assert abs(size[2] - 1) > 1e-4


def test_the_size_is_that_of_the_residual_stream():
    """Unit scales at the end of post-norm layers that add nothing leave the embedding alone."""
    model, params = decoder(norm=RMSNorm(), norm_position="after")
    for position in params["blocks"].values():
        for norm in ("attention_norm", "mlp_norm"):
            position[norm]["scale"] = jnp.zeros_like(position[norm]["scale"])
    seen = jax.jit(model.signals)(params, {"tokens": TOKENS}, None)
    embedded = params["embed"]["embedding"][TOKENS]
    rms = float(jnp.sqrt(jnp.mean(jnp.square(embedded))))
    np.testing.assert_allclose(seen["activation_rms/blocks"], [rms] * 4, rtol=1e-5)


def test_both_towers_of_a_masked_autoencoder_are_seen():
    config = VitMae(
        patch_size=4,
        d_model=16,
        num_layers=3,
        num_heads=2,
        d_ff=16,
        decoder_d_model=16,
        decoder_num_layers=2,
        decoder_num_heads=2,
        dtype="float32",
    )
    model = config.build({"images": ((16, 16, 3), "uint8")}, platform="cpu")
    images = np.random.default_rng(0).integers(255, size=(2, 16, 16, 3)).astype(np.uint8)
    seen = jax.jit(model.signals)(
        jax.jit(model.init)(jax.random.key(0)), {"images": images}, jax.random.key(0)
    )
    assert {name: x.shape for name, x in seen.items()} == {
        "attention_logit/encoder/blocks": (3,),
        "activation_rms/encoder/blocks": (3,),
        "attention_logit/decoder/blocks": (2,),
        "activation_rms/decoder/blocks": (2,),
    }
    assert all(np.isfinite(x).all() for x in seen.values())
