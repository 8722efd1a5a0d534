from pathlib import Path

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.prepare import encode as encode_module
from jaxpretrain.data.prepare.documents import Document
from jaxpretrain.data.prepare.encode import encode
from jaxpretrain.data.token_files.tokenizer import train_bpe


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(train_bpe(texts, 400, "<|endoftext|>"))
    return path


@pytest.fixture
def documents(texts: list[str]) -> list[Document]:
    return [Document("train", text, text.encode()) for text in texts]


def test_processes_and_batches_do_not_change_the_tokens(
    documents: list[Document], tokenizer: Path, monkeypatch: pytest.MonkeyPatch
):
    alone = list(encode(documents, tokenizer, workers=1))
    monkeypatch.setattr(encode_module, "BATCH_BYTES", 500)  # more batches than may wait
    shared = list(encode(documents, tokenizer, workers=2))
    assert [document for document, _, _ in shared] == documents
    for one, other in zip(alone, shared, strict=True):
        assert one[0] == other[0] and one[2] and other[2]
        np.testing.assert_array_equal(one[1], other[1])


def test_documents_are_read_as_they_are_needed(
    documents: list[Document], tokenizer: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(encode_module, "BATCH_BYTES", 1)
    num_read = 0

    def reading():
        nonlocal num_read
        for document in documents:
            num_read += 1
            yield document

    encoded = encode(reading(), tokenizer, workers=1)
    next(encoded)
    assert num_read == 1


def test_a_tokenizer_that_changes_the_text_is_noticed(tokenizer: Path, tmp_path: Path):
    """One that puts a blank before each document, as some do."""
    from tokenizers import Tokenizer, pre_tokenizers

    changed = Tokenizer.from_file(str(tokenizer))
    changed.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    changed.save(str(tmp_path / "tokenizer.json"))
    document = Document("train", "text", b"text")
    ((_, _, byte_exact),) = encode([document], tmp_path / "tokenizer.json", workers=1)
    assert not byte_exact


def test_an_error_in_the_documents_reaches_the_caller(documents: list[Document], tokenizer: Path):
    def broken():
        yield documents[0]
        raise InputError("line 2 is bad")

    with pytest.raises(InputError, match="line 2 is bad"):
        list(encode(broken(), tokenizer, workers=2))
