import jax
import numpy as np
import optax
import pytest

from jaxpretrain.models.norms import RMSNorm
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.optim.norms import global_norm, norms

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
