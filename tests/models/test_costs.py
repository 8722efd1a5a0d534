"""The closed forms agree with what JAX traces: operations in gradients, and what they keep."""

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxpretrain.models.costs import Costs
from jaxpretrain.models.layers import RMSNorm
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.sapiens.model import VitMae

OLMO_1 = Decoder(
    vocab_size=96,
    embedding_rows=96,
    d_model=32,
    num_layers=2,
    num_heads=4,
    d_ff=80,
    attention="xla",
)
OLMO_2 = replace(
    OLMO_1, norm=RMSNorm(), norm_position="after", qk_norm=True, num_kv_heads=2, dtype="float32"
)
MAE = VitMae(
    patch_size=4,
    d_model=32,
    num_layers=2,
    num_heads=4,
    d_ff=96,
    decoder_d_model=16,
    decoder_num_layers=2,
    decoder_num_heads=2,
    attention="xla",
)
IN_CHUNKS = replace(MAE, patch_size=1, attention="xla_blocks")  # 577 tokens in the decoder
FAMILIES = pytest.mark.parametrize("config", [OLMO_1, OLMO_2, MAE], ids=["olmo1", "olmo2", "mae"])
POLICIES = pytest.mark.parametrize("remat", ["none", "attention", "dots", "full"])


def build(config: Decoder | VitMae) -> Any:
    example = {"tokens": ((24,), "int32")}
    if isinstance(config, VitMae):
        example = {"images": ((24, 24, 3), "uint8")}
    return config.build(example, platform="gpu")  # plain products of matrices


def gradient(model: Any, batch_size: int) -> Any:
    """(function of the parameters whose gradient is taken, abstract parameters)."""
    batch = {
        name: jnp.zeros(spec.shape, spec.dtype)
        for name, spec in model.batch_spec(batch_size).items()
    }
    objective = lambda params: model.loss(params, batch, jax.random.key(0))[0]  # noqa: E731
    return objective, jax.eval_shape(model.init, jax.random.key(0))


def product_flops(jaxpr: Any) -> float:
    """Of all products of matrices, those in loops as often as they run."""
    flops = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            ((contracted, _), _) = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            outputs = equation.outvars[0].aval.size
            flops += 2.0 * outputs * math.prod(shape[axis] for axis in contracted)
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for parameter in equation.params.values():
            inner = getattr(parameter, "jaxpr", parameter)  # out of its constants
            if hasattr(inner, "eqns"):
                flops += times * product_flops(inner)
    return flops


@FAMILIES
@POLICIES
def test_executed_flops_are_those_of_the_traced_gradient(config, remat) -> None:
    model = build(replace(config, remat=remat))
    objective, params = gradient(model, batch_size=2)
    traced = product_flops(jax.make_jaxpr(jax.grad(objective))(params).jaxpr)
    executed = sum(model.costs().executed_flops().values())
    if isinstance(config, VitMae):
        # Counted as in the reference: the patches that are not seen, or not predicted, too.
        assert 0.9 * 2 * executed < traced < 2 * executed
    else:
        assert traced == 2 * executed


def kept_by_a_layer(config: Decoder | VitMae) -> float:
    """Bytes that the gradient of one example keeps for one more layer of each stack."""

    def kept(num_layers: int, batch_size: int) -> int:
        changed = {"num_layers": num_layers}
        if isinstance(config, VitMae):
            changed["decoder_num_layers"] = num_layers
        objective, params = gradient(build(replace(config, **changed)), batch_size)
        backward = jax.eval_shape(lambda p: jax.vjp(objective, p)[1], params)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(backward))

    # What all examples share, the weights say, and what lies outside of layers cancels.
    return (kept(3, 3) - kept(3, 1) - kept(2, 3) + kept(2, 1)) / 2


@FAMILIES
@POLICIES
def test_layers_keep_what_their_traced_gradient_reads(config, remat) -> None:
    config = replace(config, remat=remat)
    costs: Costs = build(config).costs()
    expected = sum(sum(blocks.kept) / blocks.num_layers for blocks in costs.blocks)
    traced = kept_by_a_layer(config)
    if remat == "none":
        # JAX keeps inputs of products once for each product; XLA keeps one copy.
        assert 0.9 * traced < expected < traced
    else:
        assert expected == traced


def test_chunks_of_queries_keep_no_pairs() -> None:
    config = replace(IN_CHUNKS, remat="none")
    costs: Costs = build(config).costs()
    expected = sum(sum(blocks.kept) / blocks.num_layers for blocks in costs.blocks)
    assert 0.8 * kept_by_a_layer(config) < expected < kept_by_a_layer(config)


@FAMILIES
def test_parts_add_up(config) -> None:
    model = build(config)
    for causal in (True, False):
        by_part = model.costs().flops_by_part(causal=causal)
        assert sum(by_part.values()) == model.flops_per_example(causal=causal)
        assert {"projections", "attention", "mlp", "head"} <= by_part.keys()


@POLICIES
def test_chunks_of_queries_are_computed_again(remat) -> None:
    model = build(replace(IN_CHUNKS, remat=remat))
    assert model.costs().blocks[1].query_chunk
    objective, params = gradient(model, batch_size=2)
    traced = product_flops(jax.make_jaxpr(jax.grad(objective))(params).jaxpr)
    # Queries are padded to whole chunks.
    assert traced == pytest.approx(2 * sum(model.costs().executed_flops().values()), rel=0.02)


def test_fused_kernels_compute_scores_twice_and_keep_no_pairs() -> None:
    model = build(replace(OLMO_1, remat="none"))
    (plain,) = model.costs().blocks
    fused = replace(plain, kernel="cudnn")
    attention = fused.flops(fused.visible_pairs)["attention"]
    assert plain.executed_flops()["attention"] == plain.flops(plain.all_pairs)["attention"]
    assert fused.executed_flops()["attention"] == attention * (1 + 1 / 6)
    pairs = plain.all_pairs * plain.num_heads * plain.num_layers * (4 + 2)
    sums = 4 * plain.num_heads * plain.num_tokens * plain.num_layers
    assert sum(plain.kept) - sum(fused.kept) == pairs - sums


def test_unrolled_layers_keep_less() -> None:
    (scanned,) = build(replace(OLMO_1, remat="none")).costs().blocks
    (unrolled,) = build(replace(OLMO_1, remat="none", scan_layers=False)).costs().blocks
    assert sum(unrolled.kept) < sum(scanned.kept)


def test_devices_of_a_tensor_group_share_what_is_split() -> None:
    kept = build(replace(OLMO_1, remat="dots")).costs().kept
    assert kept.on_device(1) == sum(kept)
    assert kept.on_device(2) == kept.whole + kept.split / 2
