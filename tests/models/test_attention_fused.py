"""What XLA's compiler for TPUs makes of splash attention; no TPU is needed, only its compiler."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from jaxpretrain.models.attention import attention
from jaxpretrain.models.choices import AttentionKernel, RematPolicy
from jaxpretrain.models.layers import remat
from jaxpretrain.models.masks import Mask
from jaxpretrain.parallel.mesh import Layout, Mesh


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
