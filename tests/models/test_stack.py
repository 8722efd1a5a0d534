import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.models import stack


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
