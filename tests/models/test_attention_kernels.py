from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies

from jaxpretrain.models import attention_kernels
from jaxpretrain.models.attention import attention
from jaxpretrain.models.choices import AttentionKernel, RematPolicy
from jaxpretrain.models.layers import remat
from jaxpretrain.models.masks import Mask
from jaxpretrain.parallel.mesh import Layout, Mesh

Attend = Callable[[jax.Array, jax.Array, jax.Array, Mask], jax.Array]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that short sequences have several blocks."""
    monkeypatch.setattr(attention_kernels, "MIN_QUERY_BLOCK", 4)
    monkeypatch.setattr(attention_kernels, "QUERY_CHUNK", 4)


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

    assert flops(attention_kernels.blocks) < 0.65 * flops(attention_kernels.plain)


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

    assert largest(attention_kernels.plain) >= 2 * 41 * 41
    assert largest(attention_kernels.blocks) <= 2 * 44 * 8  # the padded queries


def test_cached_keys_give_what_all_keys_give():
    """The last queries of a sequence against its keys, heads first."""
    q, k, v, _ = draw(13, 4, 2)
    whole = attention_kernels.plain(q, k, v, Mask(window=5))
    keys, values = (x.transpose(0, 2, 1, 3) for x in (k, v))
    visible = Mask(window=5).visible(slice(9, 13), slice(0, 13))
    assert visible is not None
    last = attention_kernels.cached(q[:, 9:], keys, values, visible)
    np.testing.assert_allclose(last, whole[:, 9:], atol=1e-6)


@pytest.mark.parametrize(("length", "size"), [(1, 4), (31, 4), (32, 8), (64, 8), (65, 12)])
def test_the_size_of_blocks_keeps_their_number_low(length: int, size: int):
    assert attention_kernels._block_size(length) == size


def compile_gradient(
    shape: tuple[int, int, int, int],
    kv_heads: int,
    mesh: Mesh,
    *,
    kernel: AttentionKernel = "splash",
    policy: RematPolicy = "none",
    has_documents: bool = False,
    **mask: Any,
) -> Any:
    """The compiled gradient of attention on four chips; queries are [b, t, n, h]."""
    pytest.importorskip("libtpu")
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    layout = Layout(mesh.build(topology.devices))

    def array(num_heads: int) -> jax.ShapeDtypeStruct:
        b, t, _, h = shape
        sharding = layout.sharding(("batch", None, "heads", None), (b, t, num_heads, h))
        return jax.ShapeDtypeStruct((b, t, num_heads, h), jnp.bfloat16, sharding=sharding)

    documents = jax.ShapeDtypeStruct(shape[:2], jnp.int32, sharding=layout.batch)

    def attend(q, k, v, documents):
        seen = Mask(documents_bt=documents if has_documents else None, **mask)
        return attention(jnp.sin(q), k, v, seen, kernel=kernel, shard=layout.shard)

    def total(*arrays):
        out = remat(attend, policy, scanned=False)(*arrays)
        return jnp.sum(jnp.square(out.astype(jnp.float32)))

    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    traced = gradient.trace(array(shape[2]), array(kv_heads), array(kv_heads), documents)
    return traced.lower(lowering_platforms=("tpu",)).compile()


def num_calls(hlo: str, kernel: str) -> int:
    """How often a compiled program calls one of splash's kernels (fwd, dq, dkv)."""
    calls = [line for line in hlo.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
    return sum(f"splash_mha_{kernel}_" in line for line in calls)


@pytest.mark.parametrize(
    ("shape", "kv_heads", "mesh", "options"),
    [
        ((4, 512, 8, 128), 8, Mesh(), {}),
        ((4, 513, 8, 64), 2, Mesh(fsdp=2, tensor=2), {"window": 100, "has_documents": True}),
        ((4, 1025, 4, 80), 4, Mesh(fsdp=2, tensor=2), {"causal": False}),
        ((4, 197, 4, 60), 4, Mesh(), {"causal": False, "has_documents": True}),
    ],
    ids=str,
)
def test_splash_compiles_for_any_length_head_size_and_mask(shape, kv_heads, mesh, options):
    hlo = compile_gradient(shape, kv_heads, mesh, **options).as_text()
    for kernel in ("fwd", "dq", "dkv"):
        assert num_calls(hlo, kernel) == 1
    for collective in ("all-gather", "all-to-all", "all-reduce", "collective-permute"):
        assert collective not in hlo


def test_splash_needs_a_fraction_of_the_memory_of_the_formula():
    shape = (4, 2048, 8, 128)
    splash, plain = (
        compile_gradient(shape, 8, Mesh(), kernel=kernel).memory_analysis().temp_size_in_bytes
        for kernel in ("splash", "xla")
    )
    assert plain > 8 * 2048 * 2048 * 4  # the scores of one sequence
    assert splash < 0.1 * plain


@pytest.mark.parametrize(
    ("policy", "num_runs"), [("full", 2), ("attention", 1), ("dots", 1), ("none", 1)]
)
def test_keeping_attention_spares_a_second_run_of_splash(policy, num_runs):
    hlo = compile_gradient((4, 256, 2, 64), 2, Mesh(), policy=policy).as_text()
    assert num_calls(hlo, "fwd") == num_runs
