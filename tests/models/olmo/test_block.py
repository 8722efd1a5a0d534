import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.models.layers import NormRounding, RMSNorm
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.parallel.mesh import RULES
from tests.models.olmo.conftest import OLMO_2, T, get_logits, make_params, make_tokens


def test_the_residual_stream_has_a_dtype_of_its_own():
    config = dataclasses.replace(OLMO_2, dtype="bfloat16", num_layers=2)
    params, tokens = make_params(config), make_tokens()

    def stream_dtypes(config: Decoder) -> set[str]:
        dtypes = set()

        def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
            if axes == ("batch", None, None):
                dtypes.add(x.dtype.name)
            return x

        model = config.build({"tokens": ((T,), "int32")}, platform="cpu", constrain=constrain)
        assert jax.eval_shape(model.hidden, params, tokens).dtype == jnp.bfloat16
        return dtypes

    in_float32 = dataclasses.replace(config, residual_dtype="float32")
    assert stream_dtypes(config) == {"bfloat16"}
    assert stream_dtypes(in_float32) == {"float32"}
    exact = get_logits(dataclasses.replace(config, dtype="float32"), params, tokens)
    np.testing.assert_allclose(get_logits(in_float32, params, tokens), exact, atol=0.2)


def test_norms_round_as_told():
    """In float32 there is nothing to round."""
    params, tokens = make_params(OLMO_2), make_tokens()
    for dtype, is_same in (("float32", True), ("bfloat16", False)):
        norms = [RMSNorm(1e-6, rounding) for rounding in get_args(NormRounding)]
        before, after = (
            get_logits(dataclasses.replace(OLMO_2, dtype=dtype, norm=norm), params, tokens)
            for norm in norms
        )
        assert np.array_equal(before, after) == is_same


def test_activations_are_pinned_without_changing_anything():
    """Every axis name that the model hands out is one that the sharding table knows."""
    pinned = []

    def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        assert len(axes) == x.ndim
        pinned.extend(name for name in axes if name is not None)
        return x

    model = OLMO_2.build({"tokens": ((T,), "int32")}, platform="cpu", constrain=constrain)
    params, tokens = make_params(OLMO_2), make_tokens()
    np.testing.assert_array_equal(
        jax.jit(model.logits)(params, tokens), get_logits(OLMO_2, params, tokens)
    )
    assert set(pinned) == {"batch", "heads", "mlp", "vocab"} <= RULES.keys()
