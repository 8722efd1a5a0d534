"""Exported weights compute without factors what the model computes with them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxpretrain.checkpoints.names import from_named, to_named
from jaxpretrain.checkpoints.streamed import Streamed
from jaxpretrain.config.errors import InputError
from jaxpretrain.data.images.images import ImageData
from jaxpretrain.data.text.text import TextData
from jaxpretrain.interop.folding import fold
from jaxpretrain.interop.hugging_face import open_hugging_face, write_hugging_face
from jaxpretrain.interop.source import Source
from jaxpretrain.interop.tables import whole
from jaxpretrain.models.layers import LayerNorm, RMSNorm
from jaxpretrain.models.olmo.config import Normal
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.sapiens.model import VitMae

OLMO_1 = Decoder(
    vocab_size=64,
    embedding_rows=64,
    d_model=32,
    num_layers=4,
    num_heads=4,
    d_ff=48,
    dtype="float32",
    init=Normal(std=0.2),
    scaling="completep",
    base_width=8,
    base_depth=2,
)
OLMO_2 = replace(OLMO_1, norm=RMSNorm(1e-6), norm_position="after", qk_norm=True)
TOKENS = np.random.default_rng(0).integers(64, size=(2, 12)).astype(np.int32)


def source_of(model, data) -> Source:
    built = model.build(data.example_spec(), platform="cpu")
    params = jax.jit(built.init)(jax.random.key(0))
    named = {name: np.asarray(x) for name, x in to_named(params).items()}
    streamed = {
        name: Streamed(x.shape, x.dtype, lambda name=name, x=x: [*x] if "blocks" in name else [x])
        for name, x in named.items()
    }
    for name, x in named.items():
        if "blocks" in name:
            streamed[name] = replace(streamed[name], parts=lambda x=x: [row[None] for row in x])
    return Source(model, data, 5, streamed, Path("nowhere"))


def params_of(source: Source) -> tuple[Any, Any]:
    built = source.model.build(source.data.example_spec(), platform="cpu")
    shapes = jax.eval_shape(built.init, jax.random.key(0))
    assert {*to_named(shapes)} == {*source.params}
    return built, from_named(shapes, {name: whole(x) for name, x in source.params.items()})


@pytest.mark.parametrize("model", [OLMO_1, OLMO_2, replace(OLMO_1, tied_head=True)], ids=range(3))
def test_a_hugging_face_folder_has_the_logits_of_the_model(tmp_path: Path, model: Decoder):
    source = source_of(model, TextData(seq_len=12))
    built, params = params_of(source)
    expected = np.asarray(built.logits(params, TOKENS))
    write_hugging_face(fold(source), tmp_path / "hf")
    read = open_hugging_face(tmp_path / "hf")
    assert isinstance(read.model, Decoder)
    assert read.model.scaling == "standard"
    assert not read.model.tied_head
    built, params = params_of(replace(read, model=replace(read.model, dtype="float32")))
    np.testing.assert_allclose(built.logits(params, TOKENS), expected, rtol=1e-5, atol=1e-5)
    # Without its factors, the model would compute something else.
    plain = replace(source, model=fold(source).model)
    if not model.tied_head:
        built, params = params_of(plain)
        assert np.abs(built.logits(params, TOKENS) - expected).max() > 1e-2


def test_a_folded_masked_autoencoder_predicts_the_same():
    model = VitMae(
        patch_size=4,
        d_model=32,
        num_layers=4,
        num_heads=4,
        d_ff=64,
        decoder_d_model=16,
        decoder_num_layers=2,
        decoder_num_heads=2,
        dtype="float32",
        scaling="completep",
        base_width=8,
        base_depth=2,
    )
    source = source_of(model, ImageData(size=16))
    images = np.random.default_rng(0).integers(255, size=(2, 16, 16, 3)).astype(np.uint8)
    found = []
    for one in (source, fold(source)):
        built, params = params_of(one)
        found.append(built.coordinates(params, {"images": images}, jax.random.key(0))["logits"])
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)
    assert fold(source).model == replace(
        model, scaling="standard", base_width=None, base_depth=None
    )


def test_a_standard_model_stays_as_it_is():
    standard = replace(OLMO_1, scaling="standard", base_width=None, base_depth=None)
    source = source_of(standard, TextData(seq_len=12))
    assert fold(source) is source


def test_norms_without_a_scale_take_no_factor():
    model = replace(OLMO_1, norm_position="after", norm=LayerNorm())
    with pytest.raises(InputError, match="norms without a scale"):
        fold(source_of(model, TextData(seq_len=12)))
