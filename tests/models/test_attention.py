from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

from jaxpretrain.config.errors import InputError
from jaxpretrain.models import attention_kernels
from jaxpretrain.models.attention import attention as masked_attention
from jaxpretrain.models.attention import resolve_kernel
from jaxpretrain.models.contract import unsharded
from jaxpretrain.models.layers import remat
from jaxpretrain.models.masks import Mask
from jaxpretrain.parallel.mesh import Layout, Mesh

KERNELS = ("xla", "xla_blocks", "cudnn", "splash")
WITH_DOCUMENTS = ("xla", "xla_blocks", "splash")


def attention(q, k, v, *, kernel: Any, shard: Any = unsharded, **conditions: Any) -> jax.Array:
    """Attention under a mask of these conditions."""
    return masked_attention(q, k, v, Mask(**conditions), kernel=kernel, shard=shard)


def run(q: jax.Array, k: jax.Array, v: jax.Array, **options: Any) -> jax.Array:
    """Attention, compiled as a whole: that is quicker than operation by operation."""
    return jax.jit(lambda q, k, v: attention(q, k, v, **options))(q, k, v)


def visible(length: int, window: int | None = None, causal: bool = True) -> np.ndarray:
    """[t, s] booleans, pair by pair."""
    reach = length if window is None else window
    return np.array(
        [[not causal or 0 <= t - s < reach for s in range(length)] for t in range(length)]
    )


def visible_inside(documents: np.ndarray, **options: Any) -> np.ndarray:
    """[b, t, s] booleans: those of `visible` within one document."""
    same = [[[d == e for e in row] for d in row] for row in np.asarray(documents)]
    return np.array(same) & visible(documents.shape[1], **options)


def formula(q, k, v, seen, dout=None):
    """Attention in float64, head by head, where `seen` [b, t, s] or [t, s] lets it; with `dout`,
    the gradients of q, k and v.
    """
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    b, t, n, h = q.shape
    share = n // k.shape[2]
    seen = np.broadcast_to(seen, (b, t, t))
    out, dq, dk, dv = (np.zeros_like(x) for x in (q, q, k, v))
    for i, head in np.ndindex(b, n):
        at = (i, slice(None), head // share)
        scores = np.where(seen[i], q[i, :, head] @ k[at].T / np.sqrt(h), -np.inf)
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


def some_documents(length: int) -> jax.Array:
    """Numbers of documents, other ones in each of the two sequences."""
    starts = np.random.default_rng(length).random((2, length)) < 0.3
    return jnp.asarray(np.cumsum(starts, axis=1), jnp.int32)


def gradients(q, k, v, dout, **options: Any) -> tuple[jax.Array, ...]:
    def total(q, k, v):
        return jnp.vdot(attention(q, k, v, **options), dout)

    return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(q, k, v)


@pytest.fixture(autouse=True)
def small_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Blocks of four queries, splash interpreted, and cuDNN's part played by a formula that is as
    choosy as cuDNN.

    Gives the list of the calls that this formula got.
    """
    calls: list[dict[str, Any]] = []

    def dot_product_attention(
        q, k, v, *, scale, is_causal, key_value_seq_lengths, local_window_size, implementation
    ):
        assert q.shape[1] % 2 == 0, "the length must be even"
        assert q.shape[3] % 8 == 0, "the head size must be a multiple of 8"
        assert k.shape == v.shape and k.shape[1] == q.shape[1]
        assert implementation == "cudnn"
        assert is_causal or local_window_size is None
        calls.append({"shape": q.shape, "scale": scale, "window": local_window_size})
        left, right = (q.shape[1], 0) if local_window_size is None else local_window_size
        positions = np.arange(q.shape[1])
        distance = positions[:, None] - positions[None, :]
        hidden = ((distance < max(-right, 0)) | (distance > left)) & is_causal
        if key_value_seq_lengths is not None:
            beyond = positions[None, None, None, :] >= key_value_seq_lengths[:, None, None, None]
            hidden = hidden[None, None] | beyond
        else:
            hidden = hidden[None, None]
        k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
        scores = jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=jnp.float32) * scale
        weights = jax.nn.softmax(jnp.where(hidden, -jnp.inf, scores), axis=-1)
        return jnp.einsum("bnts,bsnh->btnh", weights.astype(v.dtype), v)

    monkeypatch.setattr(attention_kernels, "MIN_QUERY_BLOCK", 4)
    monkeypatch.setattr(attention_kernels, "QUERY_CHUNK", 4)
    monkeypatch.setattr(jax.nn, "dot_product_attention", dot_product_attention)
    interpreted = partial(splash.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash, "make_splash_mha", interpreted)
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
    np.testing.assert_allclose(out, formula(q, k, v, visible(length, window)), atol=2e-6)


@pytest.mark.parametrize(("length", "window"), [(8, None), (13, 5), (37, None)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_has_the_gradients_of_the_formula(kernel, length, window):
    q, k, v, dout = inputs(length, 4, 2)
    expected = formula(q, k, v, visible(length, window), dout)
    ours = gradients(q, k, v, dout, kernel=kernel, window=window)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)


@pytest.mark.parametrize(
    ("length", "heads", "kv_heads", "head_dim"),
    [(3, 2, 2, 8), (8, 4, 2, 8), (13, 2, 1, 60), (65, 2, 2, 20)],
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_without_causality_every_kernel_is_the_formula(kernel, length, heads, kv_heads, head_dim):
    """At lengths and head sizes that must be padded, too."""
    q, k, v, dout = inputs(length, heads, kv_heads, head_dim)
    seen = visible(length, causal=False)
    out = run(q, k, v, kernel=kernel, causal=False)
    np.testing.assert_allclose(out, formula(q, k, v, seen), atol=2e-6)
    expected = formula(q, k, v, seen, dout)
    ours = gradients(q, k, v, dout, kernel=kernel, causal=False)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)


@pytest.mark.parametrize(
    ("window", "causal", "length"), [(None, True, 13), (5, True, 37), (None, False, 13)]
)
@pytest.mark.parametrize("kernel", WITH_DOCUMENTS)
def test_documents_and_windows_hide_together(kernel, window, causal, length):
    q, k, v, dout = inputs(length, 4, 2)
    documents = some_documents(length)
    seen = visible_inside(documents, window=window, causal=causal)
    options = {"kernel": kernel, "window": window, "causal": causal, "documents_bt": documents}
    np.testing.assert_allclose(run(q, k, v, **options), formula(q, k, v, seen), atol=2e-6)
    expected = formula(q, k, v, seen, dout)
    for a, b in zip(gradients(q, k, v, dout, **options), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kernel", WITH_DOCUMENTS)
def test_nothing_leaks_from_one_document_into_another(kernel, causal):
    """Of each position's output, the gradient reaches exactly the values of its document."""
    q, k, v, _ = inputs(11, 2, 2)
    documents = some_documents(11)
    options = {"kernel": kernel, "causal": causal, "documents_bt": documents}
    jacobian = jax.jacrev(lambda v: run(q, k, v, **options).sum(axis=(2, 3)))(v)
    reached = np.abs(jacobian).sum(axis=(4, 5)) > 0  # [b, t, b', s]
    for i in range(2):
        np.testing.assert_array_equal(reached[i, :, i], visible_inside(documents, causal=causal)[i])


@pytest.mark.parametrize("kernel", KERNELS)
def test_bfloat16_stays_near_the_formula(kernel):
    q, k, v, _ = inputs(13, 4, 2, dtype=jnp.bfloat16)
    out = run(q, k, v, kernel=kernel, window=6)
    assert out.dtype == jnp.bfloat16
    expected = formula(q, k, v, visible(13, 6))
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, atol=0.03)


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
    expected = formula(100 * q, 100 * k, v, visible(13, 3))
    for kernel in KERNELS:
        out = run(100 * q, 100 * k, v, kernel=kernel, window=3)
        np.testing.assert_allclose(out, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("length", "head_dim", "padded_length", "padded_head_dim"),
    [(64, 8, 64, 8), (65, 8, 66, 8), (1, 12, 2, 16), (63, 20, 64, 24)],
)
def test_cudnn_gets_padded_shapes_and_the_true_scale(
    small_kernels, length, head_dim, padded_length, padded_head_dim, causal
):
    q, k, v, _ = inputs(length, 2, 1, head_dim)
    window = 4 if causal else None
    out = run(q, k, v, kernel="cudnn", window=window, causal=causal)
    (call,) = small_kernels
    assert call == {
        "shape": (2, padded_length, 2, padded_head_dim),
        "scale": head_dim**-0.5,
        "window": (3, 0) if causal else None,  # positions to the left, the query left out
    }
    np.testing.assert_allclose(out, formula(q, k, v, visible(length, window, causal)), atol=2e-6)


def test_splash_goes_from_block_to_block():
    """Three blocks of 128 positions, the last one padded."""
    q, k, v, dout = inputs(300, 2, 1)
    documents = some_documents(300) // 40
    seen = visible_inside(documents, window=150)
    options = {"kernel": "splash", "window": 150, "documents_bt": documents}
    np.testing.assert_allclose(run(q, k, v, **options), formula(q, k, v, seen), atol=2e-6)
    expected = formula(q, k, v, seen, dout)
    for a, b in zip(gradients(q, k, v, dout, **options), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_splash_is_the_formula_on_a_mesh(kv_heads):
    """Also where there are fewer key heads than devices to divide them."""
    layout = Layout(Mesh(fsdp=2, tensor=4).build(jax.devices()))
    q, k, v, _ = inputs(13, 4, kv_heads)
    documents = some_documents(13)
    out = run(q, k, v, kernel="splash", documents_bt=documents, shard=layout.shard)
    np.testing.assert_allclose(out, formula(q, k, v, visible_inside(documents)), atol=2e-6)


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ("xla_blocks", {"window": 6}),
        ("xla_blocks", {"causal": False}),
        ("splash", {"window": 6}),
    ],
    ids=str,
)
def test_nothing_moves_between_devices(kernel, options):
    """With batch and heads spread over a mesh, each device attends on its own."""
    layout = Layout(Mesh(fsdp=2, tensor=4).build(jax.devices()))
    shape = (4, 16, 8, 8)
    sharding = layout.sharding(("batch", None, "heads", None), shape)
    x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
    documents = jax.ShapeDtypeStruct(shape[:2], jnp.int32, sharding=layout.batch)

    def total(q, k, v, documents):
        out = attention(
            q, k, v, kernel=kernel, documents_bt=documents, shard=layout.shard, **options
        )
        return jnp.sum(jnp.square(out))

    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2)), out_shardings=(sharding,) * 3)
    hlo = gradient.lower(x, x, x, documents).compile().as_text()
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
        ("auto", "tpu", "bfloat16", "splash"),
        ("auto", "tpu", "float32", "splash"),
        ("xla_blocks", "tpu", "bfloat16", "xla_blocks"),
        ("splash", "tpu", "bfloat16", "splash"),
        ("xla", "gpu", "bfloat16", "xla"),
        ("xla_blocks", "gpu", "bfloat16", "xla_blocks"),
        ("cudnn", "gpu", "bfloat16", "cudnn"),
    ],
)
def test_auto_takes_what_is_tuned_for_the_device_and_a_choice_is_kept(
    choice, platform, dtype, kernel
):
    assert resolve_kernel(choice, platform, dtype) == kernel


def test_auto_takes_blocks_for_documents_on_gpus():
    assert resolve_kernel("auto", "gpu", "bfloat16", documents=True) == "xla_blocks"
    assert resolve_kernel("auto", "tpu", "bfloat16", documents=True) == "splash"
    with pytest.raises(InputError, match="model.attention=cudnn cannot stay inside documents"):
        resolve_kernel("cudnn", "gpu", "bfloat16", documents=True)


def equations(jaxpr: Any) -> Iterator[Any]:
    """The equations of a jaxpr, those of its parts included."""
    for equation in jaxpr.eqns:
        yield equation
        for part in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield from equations(part)


@pytest.mark.parametrize("causal", [True, False])
def test_gradients_of_blocks_multiply_in_bfloat16(causal):
    q, k, v, dout = inputs(13, 4, 2, dtype=jnp.bfloat16)
    options = {"kernel": "xla_blocks", "causal": causal, "documents_bt": some_documents(13)}

    def pulled(*arrays):
        return jax.vjp(lambda *arrays: attention(*arrays, **options), *arrays)[1](dout)

    traced = jax.make_jaxpr(pulled)(q, k, v)
    products = [e for e in equations(traced.jaxpr) if e.primitive.name == "dot_general"]
    dtypes = {x.aval.dtype for product in products for x in product.invars}
    assert len(products) > 5 and dtypes == {jnp.dtype(jnp.bfloat16)}
    seen = visible_inside(some_documents(13), causal=causal)
    for a, b in zip(pulled(q, k, v), formula(q, k, v, seen, dout), strict=True):
        np.testing.assert_allclose(np.float32(a), b, atol=0.06)


@pytest.mark.parametrize(
    ("policy", "num_runs"), [("full", 2), ("attention", 1), ("dots", 1), ("none", 1)]
)
def test_keeping_attention_spares_a_second_run_of_cudnns_kernel(monkeypatch, policy, num_runs):
    """Traced for a GPU of a kind that need not be there."""
    monkeypatch.undo()
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91200)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda _: False)
    q, k, v, _ = inputs(64, 2, 2, dtype=jnp.bfloat16)

    def attend(q, k, v):
        return attention(jnp.sin(q), k, v, kernel="cudnn")

    def total(q, k, v):
        out = remat(attend, policy, scanned=False)(q, k, v)
        return jnp.sum(jnp.square(out.astype(jnp.float32)))

    gradient = jax.make_jaxpr(jax.grad(total, argnums=(0, 1, 2)))(q, k, v)
    names = [equation.primitive.name for equation in equations(gradient.jaxpr)]
    assert sum(name.startswith("dot_product_attention_fwd") for name in names) == num_runs
    assert sum(name.startswith("dot_product_attention_bwd") for name in names) == 1
    assert names.count("sin") == (1 if policy == "none" else 2)  # the rest is recomputed


@pytest.mark.parametrize(("platform", "dtype"), [("cpu", "bfloat16"), ("gpu", "float32")])
def test_cudnn_is_refused_where_it_cannot_run(platform, dtype):
    with pytest.raises(InputError, match="model.attention=cudnn needs"):
        resolve_kernel("cudnn", platform, dtype)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_splash_is_refused_where_it_cannot_run(platform):
    with pytest.raises(InputError, match="model.attention=splash needs a TPU"):
        resolve_kernel("splash", platform, "bfloat16")


def test_a_window_without_causality_is_refused():
    q, k, v, _ = inputs(4, 1, 1)
    with pytest.raises(ValueError, match="windows and branches look back"):
        attention(q, k, v, kernel="xla", window=2, causal=False)
