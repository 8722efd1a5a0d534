import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.token_files.special import beginning_with
from jaxpretrain.data.token_files.tokenizer import train_bpe
from jaxpretrain.interop.hugging_face import open_hugging_face, special_ids
from jaxpretrain.interop.source import Source, copy_token_files, merge, text_data, with_tokens
from jaxpretrain.interop.tables import whole
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.sapiens.model import VitMae

Folder = Callable[..., tuple[Path, dict[str, np.ndarray]]]

MODEL = Decoder(vocab_size=310, embedding_rows=320)


@pytest.fixture(scope="module")
def tokenizer() -> dict[str, Any]:
    """With two special tokens: <|end|>, 0, and </s>, 300."""
    document = json.loads(train_bpe(["the union of the states " * 20], 300, "<|end|>"))
    last = {**document["added_tokens"][0], "id": 300, "content": "</s>"}
    return {**document, "added_tokens": [*document["added_tokens"], last]}


@pytest.fixture
def given(tokenizer: dict[str, Any], tmp_path: Path) -> Path:
    """A folder with that tokenizer, and what lies beside it."""
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end|>", "padding": 1}')
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """A model that was trained on raw files."""
    (tmp_path / "run").mkdir()
    return Source(MODEL, text_data(32, 320), 5, {}, tmp_path / "run")


def test_a_model_of_raw_files_gets_a_tokenizer_and_an_end(
    source: Source, given: Path, tmp_path: Path
):
    assert source.token_files() == {} and source.end_ids() == ()
    file = with_tokens(source, given / "tokenizer.json", 300)
    assert file.end_ids() == (300,) and set(file.token_files()) == {"tokenizer.json"}
    folder = with_tokens(source, given, 300)
    copy_token_files(folder, source.folder)
    assert (source.folder / "tokenizer.json").read_text() == (given / "tokenizer.json").read_text()
    # The other end of documents that the file names is corrected, the rest is kept.
    document = json.loads((source.folder / "tokenizer_config.json").read_text())
    assert document == {"eos_token": "</s>", "padding": 1}
    assert special_ids(folder) == {"eos_token_id": 300}
    text = beginning_with((given / "tokenizer.json").read_text(), "<|end|>")
    (source.folder / "tokenizer.json").write_text(text)
    ids = {"eos_token_id": 300, "bos_token_id": 0}
    assert special_ids(replace(source, eos_id=300)) == ids
    assert with_tokens(source, None, 7).end_ids() == (7,)


def test_the_only_special_token_is_the_end_where_nothing_else_tells(
    source: Source, tokenizer: dict[str, Any], tmp_path: Path
):
    one = {**tokenizer, "added_tokens": tokenizer["added_tokens"][:1]}
    (tmp_path / "one.json").write_text(json.dumps(one))
    assert with_tokens(source, tmp_path / "one.json", None).end_ids() == (0,)
    inside = replace(source, model=replace(MODEL, document_end=9))
    assert with_tokens(inside, tmp_path / "one.json", None).end_ids() == (9,)


def test_files_of_another_program_are_overruled_by_hand(source: Source, tmp_path: Path):
    """Only by hand: what they name is else kept as it is, lists included."""
    (source.folder / "generation_config.json").write_text('{"eos_token_id": [1, 2], "top_k": 3}')
    theirs = replace(source, origin={"token_ids": {"eos_token_id": [1, 2], "pad_token_id": 4}})
    assert theirs.end_ids() == (1, 2)
    for name, this, eos in (("as is", theirs, [1, 2]), ("7", with_tokens(theirs, None, 7), 7)):
        output = tmp_path / name
        output.mkdir()
        copy_token_files(this, output)
        document = json.loads((output / "generation_config.json").read_text())
        assert document == {"eos_token_id": eos, "top_k": 3}
        assert special_ids(this) == {"eos_token_id": eos, "pad_token_id": 4}


def test_what_contradicts_the_model_is_one_line(source: Source, given: Path):
    trained = replace(source, eos_id=300)
    assert with_tokens(trained, given, 300).end_ids() == (300,)
    inside = replace(source, model=replace(MODEL, document_end=9))
    for model, tokenizer, eos_id, message in (
        (trained, None, 0, "--eos_id=0: the documents that this model was trained on end with 300"),
        (inside, None, 0, "--eos_id=0: the documents that this model was trained on end with 9"),
        (source, None, 310, "--eos_id=310: must be at least 0 and below the vocabulary of 310"),
        (source, None, -1, "--eos_id=-1: must be"),
        (source, given, 305, "the tokenizer has 301 ids, so none is 305, which ends documents"),
        (
            replace(source, model=replace(MODEL, vocab_size=299)),
            given,
            None,
            "has 301 ids, the model's vocabulary only 299",
        ),
        (replace(source, model=VitMae()), given, None, "a VitMae reads no text"),
    ):
        with pytest.raises(InputError, match=message):
            with_tokens(model, tokenizer, eos_id)


def test_weights_are_averaged_in_float64(hugging_face: Folder):
    folders = [hugging_face(f"of_{seed}", dtype=np.float32, seed=seed)[0] for seed in range(3)]
    sources = [open_hugging_face(folder) for folder in folders]
    soup = merge(sources)
    for name, array in soup.params.items():
        exact = np.mean([whole(s.params[name]).astype(np.float64) for s in sources], axis=0)
        np.testing.assert_array_equal(whole(array), exact.astype(np.float32))
    assert soup.origin["merged"] == [str(folder) for folder in folders]
    assert "dtype" not in soup.origin  # a mean of bfloat16 is none


def test_the_average_of_one_model_is_that_model(hugging_face: Folder):
    source = open_hugging_face(hugging_face()[0])
    for name, array in merge([source] * 3).params.items():
        np.testing.assert_array_equal(whole(array), whole(source.params[name]))


def test_models_that_differ_are_refused_by_the_field(hugging_face: Folder):
    first = open_hugging_face(hugging_face("a")[0])
    other = open_hugging_face(hugging_face("b", rope_theta=1e4)[0])
    with pytest.raises(InputError, match=r"model.rope.theta is 500000.0 there and 10000.0 in .*b"):
        merge([first, other])
