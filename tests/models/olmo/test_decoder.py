import dataclasses
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.models.choices import RematPolicy
from jaxpretrain.models.contract import LanguageModel
from jaxpretrain.models.layers import LayerNorm, RMSNorm
from jaxpretrain.models.losses import CHUNK
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.olmo.rotary import Rope, Yarn
from jaxpretrain.models.olmo.variants import OLMO_SIZES
from jaxpretrain.parallel.mesh import RULES
from tests.models.olmo.conftest import (
    OLMO_1,
    OLMO_2,
    OLMO_3,
    T,
    build,
    get_logits,
    make_params,
    make_tokens,
)


def loss_and_gradients(config: Decoder, params: Any, tokens: jax.Array) -> tuple[Any, Any]:
    model = build(config)

    def objective(params: Any) -> jax.Array:
        return model.loss(params, {"tokens": tokens}, jax.random.key(0))[0]

    return jax.jit(jax.value_and_grad(objective))(params)


# --- OLMo's formulas once more, in float64, token by token and layer by layer ---


def olmo_logits(c: Decoder, params: Any, tokens: Any) -> np.ndarray:
    """Logits [t, v] of one sequence."""
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    head_dim = c.d_model // c.num_heads
    num_kv_heads = c.num_heads if c.num_kv_heads is None else c.num_kv_heads

    def norm(x: np.ndarray, scale: dict[str, np.ndarray]) -> np.ndarray:
        if isinstance(c.norm, LayerNorm):
            assert not scale
            return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return scale["scale"] * x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)

    def rope(x: np.ndarray) -> np.ndarray:
        """[t, h]: x cos + rotate_half(x) sin."""
        inverse = 1.0 / c.rope.theta ** (np.arange(0, head_dim, 2) / head_dim)
        angles = np.outer(np.arange(len(x)), np.concatenate([inverse, inverse]))
        rotate_half = np.concatenate([-x[:, head_dim // 2 :], x[:, : head_dim // 2]], axis=1)
        return x * np.cos(angles) + rotate_half * np.sin(angles)

    def attend(x: np.ndarray, p: Any, window: int | None) -> np.ndarray:
        q, k, v = (x @ p[name]["kernel"] for name in ("query", "key", "value"))
        if c.clip_qkv is not None:
            q, k, v = (np.clip(a, -c.clip_qkv, c.clip_qkv) for a in (q, k, v))
        if c.qk_norm:
            q, k = norm(q, p["query_norm"]), norm(k, p["key_norm"])
        outputs = []
        for head in range(c.num_heads):
            kv_head = head * num_kv_heads // c.num_heads
            own, shared = (slice(i * head_dim, (i + 1) * head_dim) for i in (head, kv_head))
            queries, keys, values = rope(q[:, own]), rope(k[:, shared]), v[:, shared]
            rows = []
            for t in range(len(x)):
                first = 0 if window is None else max(0, t - window + 1)
                scores = keys[first : t + 1] @ queries[t] / np.sqrt(head_dim)
                weights = np.exp(scores - scores.max())
                rows.append(weights / weights.sum() @ values[first : t + 1])
            outputs.append(np.array(rows))
        return np.concatenate(outputs, axis=1) @ p["output"]["kernel"]

    def mlp(x: np.ndarray, p: Any) -> np.ndarray:
        gate = x @ p["gate"]["kernel"]
        return (gate / (1.0 + np.exp(-gate)) * (x @ p["up"]["kernel"])) @ p["down"]["kernel"]

    x = params["embed"]["embedding"][np.asarray(tokens)]
    for layer in range(c.num_layers):
        group, position = divmod(layer, len(c.windows))
        p = jax.tree.map(lambda a, i=group: a[i], params["blocks"][str(position)])
        window = c.windows[position]
        norms = p.get("attention_norm", {}), p.get("mlp_norm", {})
        if c.norm_position == "before":
            x = x + attend(norm(x, norms[0]), p, window)
            x = x + mlp(norm(x, norms[1]), p)
        else:
            x = x + norm(attend(x, p, window), norms[0])
            x = x + norm(mlp(x, p), norms[1])
    x = norm(x, params.get("final_norm", {}))
    return x @ (params["embed"]["embedding"].T if c.tied_head else params["head"]["kernel"])


def olmo_loss(c: Decoder, logits: np.ndarray, tokens: Any) -> tuple[float, float]:
    """(cross-entropy, squared log-normaliser), sums over the t - 1 predictions of a sequence."""
    log_normaliser = np.log(np.exp(logits[:-1]).sum(axis=1))
    predicted = logits[np.arange(T - 1), np.asarray(tokens)[1:]]
    return (log_normaliser - predicted).sum(), (log_normaliser**2).sum()


@pytest.mark.parametrize(
    "config",
    [
        OLMO_1,
        dataclasses.replace(OLMO_1, tied_head=True),
        dataclasses.replace(OLMO_1, clip_qkv=0.5),
        dataclasses.replace(OLMO_1, norm=RMSNorm(epsilon=1e-6)),
        OLMO_2,
        dataclasses.replace(OLMO_2, num_kv_heads=1, tied_head=True),
        dataclasses.replace(OLMO_2, windows=(2, None, 5, 3)),
        dataclasses.replace(OLMO_3, scan_layers=False, attention="xla", clip_qkv=0.5),
    ],
    ids=[
        "olmo1",
        "tied",
        "clipped",
        "ladder",
        "olmo2",
        "one_kv_head",
        "four_windows",
        "olmo3_unrolled",
    ],
)
def test_the_decoder_is_olmos_formulas(config):
    params, tokens = make_params(config), make_tokens()
    expected = np.array([olmo_logits(config, params, row) for row in tokens])
    assert np.ptp(expected) > 3.0
    np.testing.assert_allclose(get_logits(config, params, tokens), expected, atol=1e-4)

    model = build(config)
    objective, weight, sums = jax.jit(model.loss)(params, {"tokens": tokens}, jax.random.key(0))
    losses = [olmo_loss(config, logits, row) for logits, row in zip(expected, tokens, strict=True)]
    ce, z = np.transpose(losses)  # of each sequence
    assert weight == 2 * (T - 1)
    np.testing.assert_allclose(sums["loss"], ce, rtol=1e-5)
    np.testing.assert_allclose(sums["z"], z, rtol=1e-5)
    np.testing.assert_allclose(objective, np.sum(ce + config.z_loss * z), rtol=1e-5)


def test_traits_show_in_the_logits():
    """Otherwise the decoder could agree with the formulas without them."""
    for config in (OLMO_1, OLMO_2):
        params = make_params(config)
        tokens = make_tokens(batch=1)
        logits = olmo_logits(config, params, tokens[0])
        changes: list[dict[str, Any]] = [
            {"clip_qkv": 0.5},
            {"rope": Rope(100.0)},
            {"windows": (4,)},
            {"norm_position": "after" if config.norm_position == "before" else "before"},
        ]
        for change in changes:
            changed = olmo_logits(dataclasses.replace(config, **change), params, tokens[0])
            assert np.abs(changed - logits).max() > 0.01, change


# --- what may depend on what ---


def dependencies(config: Decoder) -> np.ndarray:
    """[t, s]: whether the logits at t depend on the token at s."""
    model, params, tokens = build(config), make_params(config), make_tokens(batch=1)
    mix_v = np.random.default_rng(1).normal(size=32).astype(np.float32)

    def mixed_logits(embedding: jax.Array) -> jax.Array:
        changed = {**params, "embed": {"embedding": embedding}}
        return model.logits(changed, tokens)[0] @ mix_v

    jacobian_tvd = jax.jit(jax.jacrev(mixed_logits))(params["embed"]["embedding"])
    return np.abs(jacobian_tvd).sum(axis=-1)[:, tokens[0]] > 0.0


def reach(num_positions: int) -> np.ndarray:
    """[t, s]: s is t or one of the `num_positions` before."""
    distance = np.arange(T)[:, None] - np.arange(T)[None, :]
    return (distance >= 0) & (distance <= num_positions)


@pytest.mark.parametrize("config", [OLMO_1, OLMO_2], ids=["olmo1", "olmo2"])
def test_logits_depend_on_all_earlier_tokens_and_on_no_later_one(config):
    np.testing.assert_array_equal(dependencies(config), reach(T))


@pytest.mark.parametrize("windows", [(None,), (3, None)], ids=str)
def test_logits_depend_on_tokens_of_their_document_alone(windows):
    """The token that ends a document belongs to it."""
    end = int(make_tokens(batch=1)[0, 4])
    config = dataclasses.replace(OLMO_2, windows=windows, document_end=end)
    document = np.arange(T) > 4
    same = document[:, None] == document[None, :]
    np.testing.assert_array_equal(dependencies(config), reach(T) & same)


def test_a_document_in_a_sequence_is_as_one_alone():
    """Rotary positions tell distances, so they need not begin anew with each document."""
    tokens = make_tokens(batch=1)
    config = dataclasses.replace(OLMO_3, document_end=int(tokens[0, 4]))
    params = make_params(config)
    together = get_logits(config, params, tokens)[0]
    for part in (slice(0, 5), slice(5, T)):
        alone = get_logits(config, params, tokens[:, part])[0]
        np.testing.assert_allclose(together[part], alone, atol=2e-5)


@pytest.mark.parametrize(
    ("windows", "num_layers", "num_positions"),
    [((3,), 2, 4), ((2, 3), 4, 6), ((2, None), 2, T)],
)
def test_windows_reach_further_with_every_layer(windows, num_layers, num_positions):
    config = dataclasses.replace(OLMO_2, windows=windows, num_layers=num_layers)
    np.testing.assert_array_equal(dependencies(config), reach(num_positions))


def test_the_last_token_is_a_target_only():
    params, tokens = make_params(OLMO_2), make_tokens(batch=1)
    _, gradients = loss_and_gradients(OLMO_2, params, tokens)
    rows = np.abs(gradients["embed"]["embedding"]).sum(axis=1)
    seen = np.zeros(32, bool)
    seen[tokens[0, :-1]] = True
    np.testing.assert_array_equal(rows > 0.0, seen)


# --- the same model, computed otherwise ---


def assert_same(ours: Any, expected: Any, tolerance: float = 2e-5) -> None:
    def close(a: Any, b: Any) -> None:
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)

    jax.tree.map(close, ours, expected)


@pytest.fixture(scope="module")
def expected_gradients() -> tuple[Any, Any]:
    """Loss and gradients of OLMO_3 as it stands: scanned, nothing recomputed."""
    return loss_and_gradients(OLMO_3, make_params(OLMO_3), make_tokens())


@pytest.mark.parametrize(
    "change",
    [{"scan_layers": False}, {"scan_layers": False, "remat": "full", "attention": "xla"}]
    + [{"remat": policy} for policy in get_args(RematPolicy) if policy != "none"],
    ids=str,
)
def test_ways_of_computing_change_neither_loss_nor_gradients(change, expected_gradients):
    changed = dataclasses.replace(OLMO_3, **change)
    ours = loss_and_gradients(changed, make_params(OLMO_3), make_tokens())
    assert_same(ours, expected_gradients)


def test_scanned_and_unrolled_layers_have_one_layout():
    scanned, unrolled = (
        jax.eval_shape(build(dataclasses.replace(OLMO_3, scan_layers=scan)).init, jax.random.key(0))
        for scan in (True, False)
    )
    assert scanned == unrolled


def test_grouped_queries_are_repeated_keys_and_values():
    config = dataclasses.replace(OLMO_1, num_kv_heads=2)
    full = dataclasses.replace(OLMO_1, num_kv_heads=None)
    params, tokens = make_params(config), make_tokens()

    def repeat(path: Any, leaf: jax.Array) -> jax.Array:
        if not {"key", "value"} & {key.key for key in path}:
            return leaf
        heads_ldmh = leaf.reshape(4, 24, 2, 6)
        return jnp.repeat(heads_ldmh, 2, axis=2).reshape(4, 24, 24)

    repeated = jax.tree_util.tree_map_with_path(repeat, params)
    assert_same(get_logits(config, params, tokens), get_logits(full, repeated, tokens))


def test_a_tied_head_is_the_transposed_embedding():
    untied = dataclasses.replace(OLMO_1, num_layers=1)
    tied = dataclasses.replace(untied, tied_head=True)
    params, tokens = make_params(tied), make_tokens()
    assert "head" not in params
    loss, gradients = loss_and_gradients(tied, params, tokens)
    params["head"] = {"kernel": params["embed"]["embedding"].T}
    expected_loss, parts = loss_and_gradients(untied, params, tokens)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    total = parts["embed"]["embedding"] + parts["head"]["kernel"].T
    assert_same(gradients["embed"]["embedding"], total)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_where_it_counts():
    config = dataclasses.replace(
        OLMO_1, dtype="bfloat16", z_loss=0.01, num_layers=1, scan_layers=False
    )
    model, tokens = build(config), make_tokens()
    # Parameters that bfloat16 holds exactly, and not so large that rounding is blown up.
    params = jax.tree.map(
        lambda p: jnp.float32((0.5 * p).astype(jnp.bfloat16)), make_params(config)
    )
    assert jax.eval_shape(model.hidden, params, tokens).dtype == jnp.bfloat16
    assert jax.eval_shape(model.logits, params, tokens).dtype == jnp.float32
    loss, gradients = loss_and_gradients(config, params, tokens)
    in_float32 = dataclasses.replace(config, dtype="float32")
    expected_loss, expected = loss_and_gradients(in_float32, params, tokens)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected_loss, rtol=0.01)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        assert a.dtype == jnp.float32
        assert 0.0 < np.linalg.norm(a - b) < 0.05 * np.linalg.norm(b)


def test_yarn_turns_layers_with_full_attention_alone():
    yarn = Yarn(theta=500.0, factor=4.0, original_length=8)
    params, tokens = make_params(OLMO_3), make_tokens()

    def largest_change(windows: tuple[int | None, ...], seq_len: int) -> float:
        config = dataclasses.replace(OLMO_3, windows=windows)
        plain = get_logits(config, params, tokens[:, :seq_len])
        changed = dataclasses.replace(config, rope=yarn)
        return np.abs(get_logits(changed, params, tokens[:, :seq_len]) - plain).max()

    assert largest_change((3, T), T) == 0.0
    assert largest_change((3, None), T) > 0.1


# --- the objective ---


def test_weights_weigh_sequences():
    config = dataclasses.replace(OLMO_1, num_layers=1, z_loss=0.01)
    model, params, tokens = build(config), make_params(config), make_tokens(batch=3)
    loss = jax.jit(lambda batch: model.loss(params, batch, jax.random.key(0)))
    single = [loss({"tokens": tokens[i : i + 1]}) for i in range(3)]
    weights = np.float32([0.0, 1.0, 2.5])
    ours = loss({"tokens": tokens, "weight": weights})
    assert ours[1] == 3.5 * (T - 1)
    objectives, _, examples = zip(*single, strict=True)
    np.testing.assert_allclose(ours[0], np.dot(weights, objectives), rtol=1e-5)
    for name, values in ours[2].items():
        alone = np.concatenate([example[name] for example in examples])
        np.testing.assert_allclose(values, weights * alone, rtol=1e-5)


def test_masked_tokens_are_predicted_for_nothing():
    """The mask of a token weighs its prediction, which the position before makes."""
    config = dataclasses.replace(OLMO_1, num_layers=1, z_loss=0.01)
    params, tokens = make_params(config), make_tokens()
    mask = np.random.default_rng(3).random(tokens.shape) < 0.5
    weight = np.float32([1.0, 3.0])
    batch = {"tokens": tokens, "mask": mask, "weight": weight}
    objective, total, sums = jax.jit(build(config).loss)(params, batch, jax.random.key(0))
    for i, (row, row_mask) in enumerate(zip(tokens, mask, strict=True)):
        logits = olmo_logits(config, params, row)[:-1]
        log_normaliser = np.log(np.exp(logits).sum(axis=1))
        ce = log_normaliser - logits[np.arange(T - 1), np.asarray(row)[1:]]
        for name, each in (("loss", ce), ("z", log_normaliser**2), ("weight", np.ones(T - 1))):
            expected = weight[i] * each[row_mask[1:]].sum()
            np.testing.assert_allclose(sums[name][i], expected, rtol=1e-5)
    assert total == np.sum(sums["weight"])
    np.testing.assert_allclose(objective, np.sum(sums["loss"] + 0.01 * sums["z"]), rtol=1e-5)


def test_olmos_trainer_counts_every_position_in_the_denominator():
    config = dataclasses.replace(OLMO_1, num_layers=1)
    params, tokens = make_params(config), make_tokens(batch=3)
    batch = {
        "tokens": tokens,
        "mask": np.arange(T)[None] > np.array([[0], [5], [T]]),
        "weight": np.float32([1.0, 2.0, 1.0]),
    }
    predictable, everything = (
        jax.jit(build(dataclasses.replace(config, loss_denominator=name)).loss)(
            params, batch, jax.random.key(0)
        )
        for name in ("predictable", "all")
    )
    assert predictable[1] == (T - 1) + 2 * (T - 6) + 0
    assert everything[1] == 4 * T
    assert_same(everything[::2], predictable[::2], 0.0)  # the sums are the same


def test_full_logits_never_exist_in_training():
    model = dataclasses.replace(OLMO_2, vocab_size=1000, embedding_rows=1000)
    params = jax.eval_shape(build(model).init, jax.random.key(0))

    def num_full_logits(t: int) -> int:
        built = build(model, t)
        gradient = jax.grad(lambda p, batch: built.loss(p, batch, jax.random.key(0))[0])
        text = str(jax.make_jaxpr(gradient)(params, built.batch_spec(2)))
        # Logits in any arrangement: positions apart or merged with the batch.
        shapes = [f"[2,{t},1000]", f"[{2 * t},1000]", f"[2,1000,{t}]", f"[1000,{2 * t}]"]
        return sum(text.count(shape) for shape in shapes)

    assert num_full_logits(CHUNK) > 0
    assert num_full_logits(CHUNK + 1) == 0


# --- parameters ---


@pytest.mark.parametrize(
    "config",
    [OLMO_1, dataclasses.replace(OLMO_1, tied_head=True), OLMO_3],
    ids=["olmo1", "tied", "olmo3"],
)
def test_axes_name_every_dimension_of_every_parameter(config):
    model = build(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    axes = model.axes()
    is_names = lambda leaf: isinstance(leaf, tuple)  # noqa: E731
    assert jax.tree.structure(axes, is_leaf=is_names) == jax.tree.structure(shapes)
    for names, shape in zip(
        jax.tree.leaves(axes, is_leaf=is_names), jax.tree.leaves(shapes), strict=True
    ):
        assert len(names) == len(shape.shape)
        assert set(names) <= RULES.keys()
    for stack in axes["blocks"].values():
        assert {names[0] for names in jax.tree.leaves(stack, is_leaf=is_names)} == {"layers"}


def test_parameter_names_and_shapes_are_the_contract():
    """Checkpoints know parameters by these names."""
    shapes = jax.eval_shape(build(OLMO_3).init, jax.random.key(0))
    names = {
        "/".join(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    block = {
        "query/kernel": (24, 24),
        "key/kernel": (24, 12),
        "value/kernel": (24, 12),
        "query_norm/scale": (24,),
        "key_norm/scale": (12,),
        "output/kernel": (24, 24),
        "attention_norm/scale": (24,),
        "gate/kernel": (24, 20),
        "up/kernel": (24, 20),
        "down/kernel": (20, 24),
        "mlp_norm/scale": (24,),
    }
    expected = {
        f"blocks/{p}/{name}": (2, *shape) for p in range(2) for name, shape in block.items()
    }
    expected |= {
        "embed/embedding": (32, 24),
        "final_norm/scale": (24,),
        "head/kernel": (24, 32),
    }
    assert names == expected


def test_no_two_matrices_start_alike_and_the_seed_decides():
    init = jax.jit(build(OLMO_3).init)
    params = init(jax.random.key(0))
    corners = [p.reshape(-1, *p.shape[-2:])[:, 0, 0] for p in jax.tree.leaves(params) if p.ndim > 1]
    # Stacked norms have two dimensions too, and start at one.
    values = np.concatenate([c for c in corners if not np.all(c == 1.0)])
    assert len(np.unique(values)) == len(values) == 4 * 7 + 2
    assert_same(init(jax.random.key(0)), params, 0.0)
    other = init(jax.random.key(1))
    assert not np.any(
        other["blocks"]["0"]["query"]["kernel"] == params["blocks"]["0"]["query"]["kernel"]
    )


# --- what the model tells about itself ---


def test_flops_of_a_published_size_in_closed_form():
    """OLMo-7B: 6 per weight and token, and 12 x width per layer and pair of positions."""
    model = OLMO_SIZES["olmo_7b"].build({"tokens": ((2048,), "int32")}, platform="cpu")
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 4096 * 50304
    products = 6 * weights * 2048
    assert model.flops_per_example(causal=False) == products + 12 * 32 * 4096 * 2048**2
    assert model.flops_per_example(causal=True) == products + 12 * 32 * 4096 * 2048 * 2049 / 2


@pytest.mark.parametrize("windows", [(None,), (3, None), (1, 4, 11, 99)])
def test_flops_follow_from_parameters_and_masks(windows):
    config = dataclasses.replace(OLMO_2, num_kv_heads=2, windows=windows)
    model = build(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    weights = sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
        if path[-1].key == "kernel"
    )
    layers_of = [windows[layer % len(windows)] for layer in range(4)]
    pairs = sum(reach(T if w is None else w - 1).sum() for w in layers_of)
    all_pairs = sum(T * (T if w is None else min(w, T)) for w in layers_of)
    assert model.flops_per_example(causal=True) == 6 * weights * T + 12 * 24 * pairs
    assert model.flops_per_example(causal=False) == 6 * weights * T + 12 * 24 * all_pairs


def test_a_tied_head_costs_what_an_untied_one_costs():
    tied = build(dataclasses.replace(OLMO_1, tied_head=True))
    assert tied.flops_per_example(causal=True) == build(OLMO_1).flops_per_example(causal=True)


def test_the_contract_of_language_models():
    model = build(OLMO_3)
    assert isinstance(model, LanguageModel)
    assert model.batch_spec(3) == {"tokens": jax.ShapeDtypeStruct((3, T), jnp.int32)}
    assert model.units_per_example() == ("tokens", T)
    assert model.input_limits() == {"tokens": 29}  # without the padding rows
    text = "\n".join(model.describe())
    for part in ("xla_blocks", "auto", "float32", "windows (3, None)", "scanned", "remat none"):
        assert part in text
    plain = "\n".join(build(OLMO_2).describe())
    assert not [word for word in ("windows", "YaRN", "documents") if word in plain]
    long = dataclasses.replace(OLMO_3, rope=Yarn(), residual_dtype="float32", dtype="bfloat16")
    text = "\n".join(build(long).describe())
    assert "YaRN x 8 on full attention" in text and "residual stream float32" in text


def test_the_kernel_follows_platform_and_choice():
    config = dataclasses.replace(OLMO_1, dtype="bfloat16")
    example = {"tokens": ((T,), "int32")}
    assert config.build(example, platform="gpu").kernel == "cudnn"
    assert config.build(example, platform="cpu").kernel == "xla_blocks_float32"
    assert config.build(example, platform="tpu").kernel == "splash"
    for choice in ("xla", "xla_blocks", "cudnn"):
        chosen = dataclasses.replace(config, attention=choice)
        assert chosen.build(example, platform="gpu").kernel == choice


def test_start_up_says_that_documents_change_the_kernel():
    config = dataclasses.replace(OLMO_1, dtype="bfloat16", document_end=7)
    model = config.build({"tokens": ((T,), "int32")}, platform="gpu")
    assert "attention xla_blocks (asked: auto), inside documents (ended by token 7)" in "\n".join(
        model.describe()
    )
