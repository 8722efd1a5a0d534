import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import jax
import numpy as np
import pytest

from jaxpretrain.evals.contract import Interrupted, Setting
from jaxpretrain.evals.held_out import HeldOut
from jaxpretrain.evals.scoring.scorer import never_interrupt
from jaxpretrain.models.olmo.config import Normal
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.parallel.mesh import Layout, Mesh

SEQ_LEN = 12
EXAMPLE = {"tokens": ((SEQ_LEN,), "int32")}
DECODER = Decoder(
    vocab_size=50,
    embedding_rows=56,
    d_model=32,
    num_layers=1,
    num_heads=4,
    d_ff=32,
    init=Normal(std=0.3),  # so that examples differ in loss
    dtype="float32",
    remat="none",
)


@dataclass(frozen=True)
class Set:
    """Examples in memory; token i stands for i % 5 bytes, if for any known number."""

    name: str
    tokens: np.ndarray
    knows_bytes: bool = True

    @property
    def num_examples(self) -> int:
        return len(self.tokens)

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"tokens": self.tokens[indices]}

    def target_bytes(self, batch: Any) -> np.ndarray | None:
        return (batch["tokens"][:, 1:] % 5).sum(axis=1) if self.knows_bytes else None


def _set(num_examples: int, name: str = "held_out", **fields: Any) -> Set:
    tokens = np.random.default_rng(num_examples).integers(50, size=(num_examples, SEQ_LEN))
    return Set(name, tokens.astype(np.int32), **fields)


def _evaluator(
    num_devices: int,
    sets: list[Set],
    params: Any,
    between_batches: Callable[[], None] = never_interrupt,
    **options: Any,
) -> tuple[Any, Any]:
    """The evaluator on so many devices, and the parameters there."""
    layout = Layout(Mesh().build(jax.devices()[:num_devices]))
    model = DECODER.build(EXAMPLE, platform="cpu", constrain=layout.constrain)
    placed = jax.device_put(params, layout.tree(model.axes(), params))
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), placed
    )
    source, eval_sets = cast(Any, (None, sets))
    setting = Setting(
        model,
        layout,
        like,
        source=source,
        eval_sets=eval_sets,
        batch_size=8,
        between_batches=between_batches,
    )
    evaluator = HeldOut(setting, **options)
    evaluator.compile()
    return evaluator, placed


@pytest.fixture(scope="module")
def params() -> Any:
    model = DECODER.build(EXAMPLE, platform="cpu")
    return jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(0)))


@pytest.fixture(scope="module")
def losses(params: Any):
    """A set -> the summed loss of each example, from the logits alone, in float64."""
    model = DECODER.build(EXAMPLE, platform="cpu")
    logits = jax.jit(model.logits)

    def compute(eval_set: Set) -> np.ndarray:
        tokens = eval_set.tokens
        logits_btv = np.asarray(logits(params, tokens), np.float64)[:, :-1]
        lse_bt = np.log(np.exp(logits_btv).sum(-1))
        target_bt = np.take_along_axis(logits_btv, tokens[:, 1:, None], axis=-1)[..., 0]
        return (lse_bt - target_bt).sum(axis=1)

    return compute


@pytest.fixture(scope="module")
def by_eights(params: Any):
    """An evaluator of several sets in batches of 8, on one device."""
    sets = [_set(19), _set(16, "whole"), _set(3, "small", knows_bytes=False)]
    return sets, *_evaluator(1, sets, params)


def test_every_example_counts_once_whatever_the_batch(by_eights: Any, losses: Any):
    sets, evaluator, params = by_eights
    scalars = evaluator(params).scalars
    for eval_set in sets:
        loss = losses(eval_set).sum() / (eval_set.num_examples * (SEQ_LEN - 1))
        assert scalars[f"eval/{eval_set.name}/loss"] == pytest.approx(loss, rel=2e-6)
        perplexity = scalars[f"eval/{eval_set.name}/perplexity"]
        assert perplexity == pytest.approx(math.exp(loss), rel=1e-5)
    assert len({eval_set.name for eval_set in sets}) * 3 == len(scalars)


def test_bits_per_byte_are_of_the_predicted_tokens(by_eights: Any, losses: Any):
    (eval_set, *_), evaluator, params = by_eights
    scalars = evaluator(params).scalars
    expected = losses(eval_set).sum() / math.log(2) / (eval_set.tokens[:, 1:] % 5).sum()
    assert scalars["eval/held_out/bits_per_byte"] == pytest.approx(expected, rel=2e-6)
    assert scalars["eval/small/bits_per_byte"] is None


def test_parameters_stay_as_they_are_and_results_repeat(by_eights: Any):
    _, evaluator, params = by_eights
    before = jax.tree.map(np.array, params)
    assert evaluator(params) == evaluator(params)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(np.asarray(a), b)


def test_devices_do_not_change_results(by_eights: Any, params: Any):
    sets, evaluator, placed = by_eights
    expected = evaluator(placed).scalars
    sharded, placed = _evaluator(8, sets, params)
    with jax.transfer_guard("disallow"):
        found = sharded(placed).scalars
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == (value if value is None else pytest.approx(value, rel=1e-6)), name


def test_only_the_first_examples_when_so_many_are_asked_for(params: Any, losses: Any):
    eval_set = _set(19)
    evaluator, placed = _evaluator(1, [eval_set], params, max_examples=10)
    loss = losses(eval_set)[:10].sum() / (10 * (SEQ_LEN - 1))
    assert evaluator(placed).scalars["eval/held_out/loss"] == pytest.approx(loss, rel=2e-6)


def test_a_model_that_is_all_wrong_has_an_infinite_perplexity(by_eights: Any):
    _, evaluator, params = by_eights
    head = params["head"]["kernel"] * 1e4
    scalars = evaluator(params | {"head": {"kernel": head}}).scalars
    assert scalars["eval/held_out/loss"] > 700
    assert scalars["eval/held_out/perplexity"] == math.inf


def test_a_set_in_which_nothing_is_predicted_has_no_results(params: Any):
    evaluator, placed = _evaluator(1, [_set(0, "empty"), _set(3)], params)
    scalars = evaluator(placed).scalars
    assert [scalars[f"eval/empty/{name}"] for name in ("loss", "perplexity")] == [None, None]
    assert scalars["eval/empty/bits_per_byte"] is None
    assert scalars["eval/held_out/loss"] is not None


def test_it_can_be_interrupted_between_batches(params: Any):
    asked = []

    def interrupt() -> None:
        asked.append(None)
        if len(asked) == 2:
            raise Interrupted

    evaluator, placed = _evaluator(1, [_set(19)], params, between_batches=interrupt)
    with pytest.raises(Interrupted):
        evaluator(placed)
    assert len(evaluator(placed).scalars) == 3  # and nothing is left of that
    assert len(asked) == 2 + 3
