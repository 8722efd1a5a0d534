from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.models import attention_xla
from jaxpretrain.models.masks import Mask

Attend = Callable[[jax.Array, jax.Array, jax.Array, Mask], jax.Array]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that short sequences have several blocks."""
    monkeypatch.setattr(attention_xla, "MIN_QUERY_BLOCK", 4)
    monkeypatch.setattr(attention_xla, "QUERY_CHUNK", 4)


def draw(length: int, heads: int, kv_heads: int, head_dim: int = 8) -> list[jax.Array]:
    """Queries, keys, values and the gradient of the output."""
    rng = np.random.default_rng(length)
    heads_of = (heads, kv_heads, kv_heads, heads)
    return [jnp.float32(rng.normal(size=(2, length, n, head_dim))) for n in heads_of]


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations, those inside of others too."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, list | tuple) else (parameter,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def test_blocks_do_about_half_of_the_plain_work():
    """FLOPs that the compiler counts, at lengths where blocks are small next to the sequence."""
    q, k, v, _ = draw(64, 1, 1, head_dim=64)

    def flops(attend: Attend) -> float:
        compiled = jax.jit(lambda *qkv: attend(*qkv, Mask())).lower(q, k, v).compile()
        return compiled.cost_analysis()["flops"]

    assert flops(attention_xla.blocks) < 0.65 * flops(attention_xla.plain)


def test_without_causality_all_pairs_never_exist_at_once():
    """Neither as one array nor as a stack of chunks that waits for the backward pass."""
    q, k, v, dout = draw(41, 1, 1)

    def largest(attend: Attend) -> int:
        def total(q, k, v):
            return jnp.vdot(attend(q, k, v, Mask(causal=False)), dout)

        jaxpr = jax.make_jaxpr(jax.grad(total, argnums=(0, 1, 2)))(q, k, v).jaxpr
        return max(
            variable.aval.size
            for equation in equations(jaxpr)
            for variable in equation.outvars
            if hasattr(variable.aval, "size")
        )

    assert largest(attention_xla.plain) >= 2 * 41 * 41
    assert largest(attention_xla.blocks) <= 2 * 44 * 8  # the padded queries


def test_cached_keys_give_what_all_keys_give():
    """The last queries of a sequence against its keys, heads first."""
    q, k, v, _ = draw(13, 4, 2)
    whole = attention_xla.plain(q, k, v, Mask(window=5))
    keys, values = (x.transpose(0, 2, 1, 3) for x in (k, v))
    visible = Mask(window=5).visible(slice(9, 13), slice(0, 13))
    assert visible is not None
    last = attention_xla.cached(q[:, 9:], keys, values, visible)
    np.testing.assert_allclose(last, whole[:, 9:], atol=1e-6)


@pytest.mark.parametrize(("length", "size"), [(1, 4), (31, 4), (32, 8), (64, 8), (65, 12)])
def test_the_size_of_blocks_keeps_their_number_low(length: int, size: int):
    assert attention_xla._block_size(length) == size
