from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from jaxpretrain.config.errors import InputError
from jaxpretrain.models import attention as module
from jaxpretrain.models.attention import attention, keep_attention, resolve_kernel

KERNELS = ("xla", "xla_blocks", "cudnn")


def run(q: jax.Array, k: jax.Array, v: jax.Array, **options: Any) -> jax.Array:
    """Attention, compiled as a whole: that is quicker than operation by operation."""
    return jax.jit(lambda q, k, v: attention(q, k, v, **options))(q, k, v)


def visible(length: int, window: int | None) -> np.ndarray:
    """[t, s] booleans, pair by pair."""
    reach = length if window is None else window
    return np.array([[0 <= t - s < reach for s in range(length)] for t in range(length)])


def formula(q, k, v, window, dout=None):
    """Causal attention in float64, head by head; with `dout`, the gradients of q, k and v."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    b, t, n, h = q.shape
    share = n // k.shape[2]
    out, dq, dk, dv = (np.zeros_like(x) for x in (q, q, k, v))
    for i, head in np.ndindex(b, n):
        at = (i, slice(None), head // share)
        scores = np.where(visible(t, window), q[i, :, head] @ k[at].T / np.sqrt(h), -np.inf)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        out[i, :, head] = weights @ v[at]
        if dout is not None:
            dy = np.asarray(dout, np.float64)[i, :, head]
            dweights = dy @ v[at].T
            dscores = weights * (dweights - (dweights * weights).sum(axis=1, keepdims=True))
            dq[i, :, head] = dscores @ k[at] / np.sqrt(h)
            dk[at] += dscores.T @ q[i, :, head] / np.sqrt(h)
            dv[at] += weights.T @ dy
    return out if dout is None else (dq, dk, dv)


def inputs(length: int, heads: int, kv_heads: int, head_dim: int = 8, dtype: Any = jnp.float32):
    """Queries, keys, values and a gradient of the output, all random."""
    rng = np.random.default_rng(length)
    counts = (heads, kv_heads, kv_heads, heads)
    return tuple(jnp.asarray(rng.normal(size=(2, length, n, head_dim)), dtype) for n in counts)


@pytest.fixture(autouse=True)
def small_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Blocks of four queries, and cuDNN's part played by a formula that is as choosy as cuDNN.

    Gives the list of the calls that this formula got.
    """
    calls: list[dict[str, Any]] = []

    def dot_product_attention(q, k, v, *, scale, is_causal, local_window_size, implementation):
        assert q.shape[1] % 64 == 0, "the length must be a multiple of 64"
        assert q.shape[3] % 8 == 0, "the head size must be a multiple of 8"
        assert k.shape == v.shape and k.shape[1] == q.shape[1]
        assert is_causal and implementation == "cudnn"
        calls.append({"shape": q.shape, "scale": scale, "window": local_window_size})
        left, right = (q.shape[1], 0) if local_window_size is None else local_window_size
        positions = np.arange(q.shape[1])
        distance = positions[:, None] - positions[None, :]
        hidden = (distance < max(-right, 0)) | (distance > left)
        k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
        scores = jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=jnp.float32) * scale
        weights = jax.nn.softmax(jnp.where(hidden[None, None], -jnp.inf, scores), axis=-1)
        return jnp.einsum("bnts,bsnh->btnh", weights.astype(v.dtype), v)

    monkeypatch.setattr(module, "MIN_QUERY_BLOCK", 4)
    monkeypatch.setattr(jax.nn, "dot_product_attention", dot_product_attention)
    yield calls


@pytest.mark.parametrize(
    ("length", "heads", "kv_heads", "window"),
    [
        (1, 2, 2, None),
        (8, 2, 2, None),
        (8, 4, 2, 3),
        (13, 2, 2, 6),  # 13 leaves a short last block
        (13, 4, 2, None),
        (13, 3, 1, 1),
        (13, 3, 1, 40),
        (37, 4, 2, 13),  # blocks of eight
    ],
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_is_the_formula(kernel, length, heads, kv_heads, window):
    q, k, v, _ = inputs(length, heads, kv_heads)
    out = run(q, k, v, kernel=kernel, window=window)
    np.testing.assert_allclose(out, formula(q, k, v, window), atol=2e-6)


@pytest.mark.parametrize(("length", "window"), [(8, None), (13, 5), (37, None)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_has_the_gradients_of_the_formula(kernel, length, window):
    q, k, v, dout = inputs(length, 4, 2)

    def total(q, k, v):
        return jnp.vdot(attention(q, k, v, kernel=kernel, window=window), dout)

    gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(q, k, v)
    for ours, expected in zip(gradients, formula(q, k, v, window, dout), strict=True):
        np.testing.assert_allclose(ours, expected, atol=5e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_bfloat16_stays_near_the_formula(kernel):
    q, k, v, _ = inputs(13, 4, 2, dtype=jnp.bfloat16)
    out = run(q, k, v, kernel=kernel, window=6)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), formula(q, k, v, 6), atol=0.03)


@pytest.mark.parametrize("window", [1, 5, 11])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_window_is_the_number_of_positions_seen(kernel, window):
    """Of each position's output, the gradient reaches exactly the last `window` values."""
    q, k, v, _ = inputs(11, 2, 2)
    jacobian = jax.jacrev(lambda v: run(q, k, v, kernel=kernel, window=window).sum(axis=(0, 2, 3)))(
        v
    )
    seen = np.abs(jacobian).sum(axis=(1, 3, 4)) > 0  # [t, s]
    np.testing.assert_array_equal(seen, visible(11, window))
    np.testing.assert_array_equal(seen.sum(axis=1), np.minimum(np.arange(11) + 1, window))


def test_large_scores_neither_overflow_nor_wash_out():
    q, k, v, _ = inputs(13, 2, 2)
    for kernel in KERNELS:
        out = run(100 * q, 100 * k, v, kernel=kernel, window=3)
        np.testing.assert_allclose(out, formula(100 * q, 100 * k, v, 3), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("length", "head_dim", "padded_length", "padded_head_dim"),
    [(64, 8, 64, 8), (65, 8, 128, 8), (1, 12, 64, 16), (63, 20, 64, 24)],
)
def test_cudnn_gets_padded_shapes_and_the_true_scale(
    small_kernels, length, head_dim, padded_length, padded_head_dim
):
    q, k, v, _ = inputs(length, 2, 1, head_dim)
    out = run(q, k, v, kernel="cudnn", window=4)
    (call,) = small_kernels
    assert call == {
        "shape": (2, padded_length, 2, padded_head_dim),
        "scale": head_dim**-0.5,
        "window": (3, 0),  # positions to the left, the query left out
    }
    np.testing.assert_allclose(out, formula(q, k, v, 4), atol=2e-6)


def test_blocks_do_about_half_of_the_plain_work():
    """FLOPs that the compiler counts, at lengths where blocks are small next to the sequence."""
    q, k, v, _ = inputs(64, 1, 1, head_dim=64)

    def flops(kernel: Any) -> float:
        compiled = jax.jit(lambda *qkv: attention(*qkv, kernel=kernel)).lower(q, k, v).compile()
        return compiled.cost_analysis()["flops"]

    assert flops("xla_blocks") < 0.65 * flops("xla")


def test_blocks_move_nothing_between_devices():
    """With batch and heads spread over a mesh, each device attends on its own."""
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spec = jax.sharding.PartitionSpec("data", None, "tensor", None)
    x = jax.ShapeDtypeStruct(
        (4, 16, 8, 8), jnp.float32, sharding=jax.sharding.NamedSharding(mesh, spec)
    )

    def total(q, k, v):
        return jnp.sum(jnp.square(attention(q, k, v, kernel="xla_blocks", window=6)))

    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2)), out_shardings=(x.sharding,) * 3)
    hlo = gradient.lower(x, x, x).compile().as_text()
    assert "dot(" in hlo
    for collective in ("all-gather", "all-to-all", "all-reduce", "collective-permute"):
        assert collective not in hlo


@pytest.mark.parametrize(
    ("choice", "platform", "dtype", "kernel"),
    [
        ("auto", "gpu", "bfloat16", "cudnn"),
        ("auto", "cuda", "bfloat16", "cudnn"),
        ("auto", "gpu", "float32", "xla_blocks"),
        ("auto", "cpu", "bfloat16", "xla_blocks_float32"),
        ("auto", "cpu", "float32", "xla_blocks"),
        ("auto", "tpu", "bfloat16", "xla_blocks"),
        ("xla", "gpu", "bfloat16", "xla"),
        ("xla_blocks", "gpu", "bfloat16", "xla_blocks"),
        ("cudnn", "gpu", "bfloat16", "cudnn"),
    ],
)
def test_auto_takes_cudnn_where_it_runs_and_a_choice_is_kept(choice, platform, dtype, kernel):
    assert resolve_kernel(choice, platform, dtype) == kernel


def primitives(jaxpr: Any) -> Iterator[str]:
    """Names of the primitives of a jaxpr, those of its parts included."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for part in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield from primitives(part)


@pytest.mark.parametrize(("policy", "num_runs"), [(None, 2), (keep_attention, 1)])
def test_keeping_attention_spares_a_second_run_of_cudnns_kernel(monkeypatch, policy, num_runs):
    """Traced for a GPU of a kind that need not be there."""
    monkeypatch.undo()
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91200)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda _: False)
    q, k, v, _ = inputs(64, 2, 2, dtype=jnp.bfloat16)

    def total(q, k, v):
        out = attention(jnp.sin(q), k, v, kernel="cudnn")
        return jnp.sum(jnp.square(out.astype(jnp.float32)))

    gradient = jax.grad(jax.checkpoint(total, policy=policy))
    names = list(primitives(jax.make_jaxpr(gradient)(q, k, v).jaxpr))
    assert sum(name.startswith("dot_product_attention_fwd") for name in names) == num_runs
    assert sum(name.startswith("dot_product_attention_bwd") for name in names) == 1
    assert names.count("sin") == 2  # the rest is recomputed


@pytest.mark.parametrize(("platform", "dtype"), [("cpu", "bfloat16"), ("gpu", "float32")])
def test_cudnn_is_refused_where_it_cannot_run(platform, dtype):
    with pytest.raises(InputError, match="model.attention=cudnn needs"):
        resolve_kernel("cudnn", platform, dtype)
