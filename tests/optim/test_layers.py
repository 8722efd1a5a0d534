import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpretrain.models.layers import RMSNorm
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.optim.layers import (
    clip_by_global_norm,
    global_norm,
    is_layer_matrix,
    layer_axes,
    mask,
    norms,
)


@pytest.mark.parametrize("tied_head", [True, False])
def test_matrices_of_layers_are_all_but_table_head_norms_and_biases(tied_head):
    config = Decoder(
        vocab_size=7,
        embedding_rows=8,
        d_model=8,
        num_layers=2,
        num_heads=2,
        d_ff=8,
        norm=RMSNorm(),
        qk_norm=True,
        windows=(2, None),
        tied_head=tied_head,
    )
    model = config.build({"tokens": ((4,), "int32")}, platform="cpu")
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    accepted = jax.tree_util.tree_leaves_with_path(mask(shapes, is_layer_matrix))
    names = {tuple(k.key for k in path): yes for path, yes in accepted}
    assert {name for name, yes in names.items() if yes} == {
        name for name in names if name[0] == "blocks" and name[-1] == "kernel"
    }
    assert len({name for name, yes in names.items() if yes}) >= 2 * 6
    for path, shape in jax.tree_util.tree_leaves_with_path(shapes):
        if is_layer_matrix(path):
            assert shape.ndim == 3


def test_the_axes_of_a_layer_leave_out_the_one_that_counts_layers():
    params = {
        "blocks": {"0": {"kernel": np.ones((2, 3, 4)), "scale": np.ones((2, 3))}},
        "head": {"kernel": np.ones((3, 4))},
    }
    paths = jax.tree_util.tree_leaves_with_path(params)
    assert [layer_axes(path, leaf.ndim) for path, leaf in paths] == [(1, 2), (1,), (0, 1)]


CONFIG = Decoder(
    vocab_size=7,
    embedding_rows=8,
    d_model=8,
    num_layers=4,
    num_heads=2,
    d_ff=8,
    norm=RMSNorm(),
    windows=(2, None),
)


@pytest.fixture(scope="module")
def params():
    model = CONFIG.build({"tokens": ((4,), "int32")}, platform="cpu")
    return jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(0)))


def test_the_norm_of_the_whole_is_optax(params):
    assert float(global_norm(params)) == pytest.approx(float(optax.global_norm(params)), rel=1e-6)
    assert float(norms(params)[0]) == float(global_norm(params))


def test_layers_stand_in_the_order_of_the_model(params):
    """Layer l is row l // 2 of the stack at position l % 2 of the pattern."""
    _, parts = norms(params)
    expected = [
        np.linalg.norm(params["blocks"][str(layer % 2)]["query"]["kernel"][layer // 2])
        for layer in range(4)
    ]
    np.testing.assert_allclose(parts["blocks/query"], expected, rtol=1e-6)


def test_parts_make_up_the_layers_and_all_together_the_whole(params):
    whole, parts = norms(params)
    assert {name for name in parts if "blocks" not in name} == {"embed", "final_norm", "head"}
    of_layers = [x for name, x in parts.items() if name.startswith("blocks/")]
    np.testing.assert_allclose(
        parts["blocks"], np.sqrt(sum(np.square(x) for x in of_layers)), rtol=1e-6
    )
    outside = [x for name, x in parts.items() if not name.startswith("blocks/")]
    assert float(whole) == pytest.approx(
        np.linalg.norm(np.concatenate([np.ravel(x) for x in outside]))
    )


def test_weights_and_biases_of_a_part_are_one_and_towers_stay_apart():
    def linear(value):
        return {"kernel": np.full((3, 2, 2), value), "bias": np.full((3, 2), value)}

    tree = {name: {"blocks": {"0": {"up": linear(x)}}} for name, x in (("a", 1.0), ("b", 2.0))}
    _, parts = norms(tree)
    np.testing.assert_allclose(parts["a/blocks/up"], [6**0.5] * 3, rtol=1e-6)
    np.testing.assert_allclose(parts["b/blocks"], [2 * 6**0.5] * 3, rtol=1e-6)
    assert set(parts) == {"a/blocks", "a/blocks/up", "b/blocks", "b/blocks/up"}


def test_clipping_is_global_and_has_torchs_small_number():
    clip = clip_by_global_norm(1.0)
    gradients = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[0.0, 4.0]])}
    clipped, _ = clip.update(gradients, clip.init(gradients))
    np.testing.assert_allclose(clipped["a"], np.array([3.0, 0.0]) / (5.0 + 1e-6), rtol=1e-6)
    np.testing.assert_allclose(clipped["b"], np.array([[0.0, 4.0]]) / (5.0 + 1e-6), rtol=1e-6)

    small = jax.tree.map(lambda g: 0.1 * g, gradients)
    kept, _ = clip.update(small, clip.init(small))
    jax.tree.map(np.testing.assert_array_equal, kept, small)

    tiny = clip_by_global_norm(1e-6)  # where the 1e-6 is half of the denominator
    halved, _ = tiny.update({"a": jnp.array([1e-6])}, tiny.init({}))
    np.testing.assert_allclose(halved["a"], 0.5e-6, rtol=1e-5)


def test_a_higher_threshold_at_first_comes_one_update_late():
    """OLMo-7B's 1000 updates at ten times the norm are its updates 2 to 1001."""
    clip = clip_by_global_norm(1.0, warmup=3, warmup_factor=10.0)
    gradients = {"a": jnp.full(4, 100.0)}
    state, found = clip.init(gradients), []
    for _ in range(6):
        clipped, state = clip.update(gradients, state)
        found.append(optax.global_norm(clipped))
    np.testing.assert_allclose(found, [1.0, 10.0, 10.0, 10.0, 1.0, 1.0], rtol=1e-6)


def test_without_a_warmup_there_is_nothing_to_remember():
    assert not jax.tree.leaves(clip_by_global_norm(1.0).init({"a": jnp.zeros(2)}))
