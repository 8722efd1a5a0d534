import jax
import numpy as np
import pytest

from jaxpretrain.models.norms import RMSNorm
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.optim.layers import is_layer_matrix, layer_axes, mask


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
