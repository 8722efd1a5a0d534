"""Branches of a stem in one row are computed as each of them alone."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.models import attention_kernels
from jaxpretrain.models.contract import Branches, is_axes, unconstrained, unsharded
from jaxpretrain.models.layers import LayerNorm, RMSNorm
from jaxpretrain.models.olmo.config import Normal
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.olmo.rotary import Rope, Yarn

END = 28
GROUPED = Decoder(
    vocab_size=29,
    embedding_rows=32,
    d_model=32,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    d_ff=20,
    norm=RMSNorm(),
    norm_position="after",
    qk_norm=True,
    init=Normal(std=0.3),
    windows=(3, None),
    rope=Yarn(factor=4.0, original_length=8),
    dtype="float32",
    remat="none",
)
PLAIN = dataclasses.replace(
    GROUPED, num_kv_heads=None, norm=LayerNorm(), windows=(None,), rope=Rope(), attention="xla"
)
WINDOWS = dataclasses.replace(GROUPED, windows=(2, 5), rope=Rope())
DOCUMENTS = dataclasses.replace(GROUPED, document_end=END)

Tree = tuple[Sequence[int], Sequence[Sequence[int]]]
"""The lengths of stems and of their branches."""


def draw(lengths: Sequence[tuple[int, Sequence[int]]], seed: int) -> list[Tree]:
    """Stems with their branches, in tokens; some of them end documents."""
    rng = np.random.default_rng(seed)

    def tokens(length: int) -> list[int]:
        ends = rng.random(length) < 0.2
        return np.where(ends, END, rng.integers(0, END, length)).tolist()

    return [(tokens(stem), [tokens(n) for n in branches]) for stem, branches in lengths]


def pack(trees: Sequence[Tree], length: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """A row of tokens and the three rows of its `Branches`; padding is a stem of its own."""
    pieces: list[tuple[Sequence[int], int, int, int]] = []
    for number, (stem, branches) in enumerate(trees):
        pieces.append((stem, number, 0, 0))
        pieces += [(tail, number, i + 1, len(stem)) for i, tail in enumerate(branches)]
    pieces.append(([0] * (length - sum(len(piece[0]) for piece in pieces)), len(trees), 0, 0))
    tokens = np.concatenate([np.array(piece[0], np.int32) for piece in pieces])
    rows = [
        [np.full(len(p), stem), np.full(len(p), branch), first + np.arange(len(p))]
        for p, stem, branch, first in pieces
    ]
    return tokens, [np.concatenate(parts).astype(np.int32) for parts in zip(*rows, strict=True)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_kernels, "MIN_QUERY_BLOCK", 4)


@pytest.mark.parametrize(
    "config",
    [PLAIN, WINDOWS, GROUPED, DOCUMENTS],
    ids=["full", "windows", "grouped_yarn", "documents"],
)
def test_branches_are_as_each_alone(config: Decoder):
    length = 31
    rows = [
        draw([(5, [3, 1, 4]), (2, [6]), (4, [2, 2])], seed=0),  # several stems in a row
        draw([(1, [4, 9, 1]), (12, [])], seed=1),  # and one without branches
    ]
    packed = [pack(trees, length) for trees in rows]
    tokens_bt = jnp.stack([tokens for tokens, _ in packed])
    branches = Branches(*(jnp.stack(part) for part in zip(*(b for _, b in packed), strict=True)))
    model = config.build({"tokens": ((length,), "int32")}, platform="cpu")
    params = jax.jit(model.init)(jax.random.key(0))
    hidden_btd = np.asarray(jax.jit(model.hidden)(params, tokens_bt, branches))
    alone = jax.jit(model.hidden)

    for row, trees in enumerate(rows):
        place = 0
        for stem, tails in trees:
            expected = alone(params, jnp.array([stem], jnp.int32))[0]
            ours = hidden_btd[row, place : (place := place + len(stem))]
            np.testing.assert_allclose(ours, expected, atol=1e-5)
            for tail in tails:
                expected = alone(params, jnp.array([[*stem, *tail]], jnp.int32))[0, len(stem) :]
                ours = hidden_btd[row, place : (place := place + len(tail))]
                np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_kernels_that_know_no_branches_give_way(platform: str):
    """cuDNN and splash attend where there are none; they would not run here."""
    config = dataclasses.replace(PLAIN, dtype="bfloat16", attention="auto")
    tokens, branches = pack(draw([(4, [2, 2])], seed=0), 8)
    model, reference = (
        config.build({"tokens": ((8,), "int32")}, platform=p) for p in (platform, "cpu")
    )
    params: Any = jax.jit(reference.init)(jax.random.key(0))
    rows = Branches(*(jnp.asarray(part)[None] for part in branches))
    tokens_bt = jnp.asarray(tokens)[None]
    ours, expected = (m.hidden(params, tokens_bt, rows) for m in (model, reference))
    np.testing.assert_allclose(np.float32(ours), np.float32(expected), atol=0.05)


def test_a_single_device_neither_pins_nor_divides():
    x = jnp.arange(6.0).reshape(2, 3)
    assert unconstrained(x, ("batch", None)) is x
    np.testing.assert_array_equal(unsharded(jnp.add, [x, x], [("batch", None)] * 2), 2 * x)


def test_axes_of_an_array_are_a_leaf():
    axes = {"a": {"kernel": ("layers", "embed", None)}, "b": {"scale": ("norm",)}}
    leaves = jax.tree.leaves(axes, is_leaf=is_axes)
    assert leaves == [("layers", "embed", None), ("norm",)]
