import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.token_files.tokenizer import (
    encoder,
    read_tokenizer,
    special_id,
    token_bytes,
    token_texts,
    train_bpe,
    vocabulary_size,
)

EOS = "<|endoftext|>"


@pytest.fixture(scope="module")
def tokenizer(texts: list[str]) -> str:
    """Trained on the corpus, with two tokens added that are not special, as OLMo's has."""
    from tokenizers import Tokenizer

    trained = Tokenizer.from_str(train_bpe(texts, 400, EOS))
    trained.add_tokens(["    ", "|||Ü|||"])
    return trained.to_str()


def _num_bytes(text: str) -> int:
    return len(unicodedata.normalize("NFC", text).encode())


def test_token_bytes_add_up_to_every_text(tokenizer: str, texts: list[str]):
    sizes, encode = token_bytes(tokenizer), encoder(tokenizer).encode
    assert sizes is not None and sizes.shape == (vocabulary_size(tokenizer),)
    every_byte = "".join(map(chr, range(1, 0x900)))
    for text in [*texts, every_byte, "a    b  c |||Ü||| d", "\r\n\x00", ""]:
        ids = np.array(encode(text, add_special_tokens=False).ids, np.int64)
        assert sizes[ids].sum() == _num_bytes(text)


def test_token_texts_join_to_every_text(tokenizer: str, texts: list[str]):
    pieces, encode = token_texts(tokenizer), encoder(tokenizer).encode
    assert pieces is not None
    letters = "".join(
        map(chr, range(1, 0x300))
    )  # versions of Unicode order rarer marks differently
    for text in [*texts, letters, "a    b |||Ü||| d"]:
        ids = encode(text, add_special_tokens=False).ids
        joined = b"".join(pieces[number] for number in ids)
        assert joined == unicodedata.normalize("NFC", text).encode()


def test_added_tokens_are_used_and_have_their_length(tokenizer: str):
    sizes = token_bytes(tokenizer)
    assert sizes is not None
    ids = encoder(tokenizer).encode("a    |||Ü|||", add_special_tokens=False).ids
    assert [int(sizes[number]) for number in ids] == [1, 4, 8]


def test_special_tokens_stand_for_no_bytes(tokenizer: str):
    sizes = token_bytes(tokenizer)
    assert sizes is not None and sizes[special_id(tokenizer, EOS)] == 0


def test_text_that_spells_the_eos_is_text(tokenizer: str):
    encode = encoder(tokenizer).encode
    ids = encode(f"one{EOS}two", add_special_tokens=False).ids
    assert special_id(tokenizer, EOS) not in ids


def test_encoding_is_undone_by_decoding(tokenizer: str, texts: list[str]):
    encoder_ = encoder(tokenizer)
    for text in texts:
        ids = encoder_.encode(text, add_special_tokens=False).ids
        assert encoder_.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)


def test_truncation_and_padding_of_the_file_are_off(tokenizer: str):
    from tokenizers import Tokenizer

    cut = Tokenizer.from_str(tokenizer)
    cut.enable_truncation(3)
    cut.enable_padding(length=100)
    ids = encoder(cut.to_str()).encode("some longer text", add_special_tokens=False).ids
    assert ids == encoder(tokenizer).encode("some longer text", add_special_tokens=False).ids


def test_the_template_of_the_file_adds_no_special_tokens(tokenizer: str):
    """Whatever the caller asks for: documents, prompts and tasks are the text alone."""
    from tokenizers import Tokenizer, processors

    framed = Tokenizer.from_str(tokenizer)
    framed.add_special_tokens(["<s>", "</s>"])
    special = [(token, framed.token_to_id(token)) for token in ("<s>", "</s>")]
    framed.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=special)
    assert framed.encode("some text").ids[-1] == special[1][1]
    expected = encoder(tokenizer).encode("some text").ids
    for add in (True, False):
        found = encoder(framed.to_str()).encode("some text", add_special_tokens=add).ids
        assert found == expected


def test_training_gives_the_same_tokenizer_each_time(texts: list[str]):
    assert train_bpe(texts, 350, EOS) == train_bpe(iter(texts), 350, EOS)


def test_a_vocabulary_below_the_bytes_is_refused(texts: list[str]):
    with pytest.raises(InputError, match="need 257"):
        train_bpe(texts, 256, EOS)


def test_a_vocabulary_that_is_not_of_bytes_has_no_byte_counts():
    raw = {"model": {"type": "WordLevel", "vocab": {"a": 0}}, "pre_tokenizer": None}
    assert token_bytes(json.dumps(raw)) is None


def test_byte_level_is_found_inside_a_sequence(tokenizer: str):
    raw = json.loads(tokenizer)
    raw["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits"}, raw["pre_tokenizer"]],
    }
    np.testing.assert_array_equal(token_bytes(json.dumps(raw)), token_bytes(tokenizer))


def test_a_gap_in_the_ids_counts_into_the_vocabulary(tokenizer: str):
    raw: dict[str, Any] = json.loads(tokenizer)
    raw["added_tokens"].append({"id": 1000, "content": "<x>", "special": True})
    assert vocabulary_size(json.dumps(raw)) == 1001


def test_a_missing_eos_names_the_special_tokens(tokenizer: str):
    with pytest.raises(InputError, match=r"no token '</s>'.*<\|endoftext\|>.*--eos_token"):
        special_id(tokenizer, "</s>")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"model": 3}', b"\xff\xfe"])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: bytes):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer\.json: .* not a tokenizer\.json"):
        read_tokenizer(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"added_tokens": [{"id": "0", "content": "a", "special": True}]}, "added_tokens.0.id"),
        ({"added_tokens": [{"id": 0, "content": "a"}]}, "added_tokens.0.special: is missing"),
        ({"added_tokens": {"a": 0}}, "added_tokens: expected a list or null"),
        ({"model": {"vocab": {"a": "0"}}}, "model.vocab: an id is not"),
        ({"model": {"vocab": {"a": 2**40}}}, "model.vocab: an id is not"),
        ({"model": {"vocab": {"a": -1}}}, "model.vocab: an id is not"),
        ({"model": {"vocab": [["a"]]}}, "model.vocab: expected an object, or a list of pairs"),
        ({"model": {"vocab": [[1, 0.5]]}}, "model.vocab: a piece is not a text"),
        ({"model": {"vocab": {}}, "added_tokens": []}, "model.vocab: has no tokens"),
        ({"model": {"vocab": {"a": 0}, "dropout": "0.1"}}, "model.dropout: expected a number"),
    ],
)
def test_values_of_other_types_are_named(
    tokenizer: str, tmp_path: Path, change: dict[str, Any], message: str
):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(tokenizer) | change))
    with pytest.raises(InputError, match=rf"tokenizer\.json: {message}"):
        read_tokenizer(path)


def test_what_the_package_cannot_read_is_named(tokenizer: str, tmp_path: Path):
    text = json.dumps(json.loads(tokenizer) | {"normalizer": {"type": "NFX"}})
    with pytest.raises(InputError, match=r"x\.json: the tokenizers package cannot read it"):
        encoder(text, tmp_path / "x.json")


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(InputError, match="absent.json: no such tokenizer file"):
        read_tokenizer(tmp_path / "absent.json")


def test_a_folder_stands_for_the_tokenizer_in_it(tokenizer: str, tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text(tokenizer)
    assert read_tokenizer(tmp_path) == tokenizer


def test_a_folder_is_not_a_tokenizer(tmp_path: Path):
    with pytest.raises(InputError, match=r"not a tokenizer\.json"):
        read_tokenizer(tmp_path)


def test_dropout_is_refused(tokenizer: str, tmp_path: Path):
    raw = json.loads(tokenizer)
    raw["model"]["dropout"] = 0.1
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"dropout 0\.1"):
        read_tokenizer(path)
