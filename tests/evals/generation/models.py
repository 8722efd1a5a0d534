"""A small decoder that draws texts, for the tests of generation and of samples."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxpretrain.models.olmo.config import Normal
from jaxpretrain.models.olmo.decoder import Decoder, DecoderModel
from jaxpretrain.parallel.mesh import Layout, Mesh

SEQ_LEN = 24
VOCAB_SIZE = 270
DECODER = Decoder(
    vocab_size=VOCAB_SIZE,
    embedding_rows=320,
    d_model=32,
    num_layers=1,
    num_heads=4,
    d_ff=32,
    init=Normal(std=0.3),
    dtype="float32",
    remat="none",
)


def make_layout(**sizes: int) -> Layout:
    num_devices = int(np.prod(list(sizes.values())))
    return Layout(Mesh(**{"fsdp": 1} | sizes).build(jax.devices()[:num_devices]))


def make_model(layout: Layout | None = None, **changes: Any) -> DecoderModel:
    pinned = {} if layout is None else {"constrain": layout.constrain, "shard": layout.shard}
    decoder = dataclasses.replace(DECODER, **changes)
    return decoder.build({"tokens": ((SEQ_LEN,), "int32")}, platform="cpu", **pinned)


def read_anew(model: DecoderModel, params: Any, ids: Sequence[int], num_tokens: int) -> list[int]:
    """The likeliest continuation, the whole text read again for each token."""
    logits, ids, first = jax.jit(model.logits), list(ids), len(ids)
    for place in range(first, first + num_tokens):
        window = np.zeros((1, SEQ_LEN), np.int32)
        window[0, :place] = ids
        ids.append(int(logits(params, window)[0, place - 1, :VOCAB_SIZE].argmax()))
    return ids[first:]
