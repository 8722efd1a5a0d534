import struct
from pathlib import Path

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.text.corpus import Corpus, RawTokens, TextSource
from jaxpretrain.data.token_files.megatron import common_end, read_index
from jaxpretrain.data.token_files.tokens import TokenFiles

CODES = {"<u2": 8, "<i4": 4, "<i8": 5}


def write(path: Path, documents: list[list[int]], kind: str = "<u2", code: int | None = None):
    """Writes what Megatron's IndexedDatasetBuilder writes, one sequence a document."""
    path.parent.mkdir(exist_ok=True)
    np.concatenate(documents).astype(kind).tofile(path)
    lengths = np.array([len(document) for document in documents], "<i4")
    starts = (
        np.concatenate([[0], np.cumsum(lengths[:-1], dtype=np.int64)]) * np.dtype(kind).itemsize
    )
    bounds = np.arange(len(documents) + 1)
    sizes = (len(documents), len(bounds))
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code or CODES[kind], *sizes)
    arrays = (lengths, starts.astype("<i8"), bounds.astype("<i8"))
    path.with_suffix(".idx").write_bytes(head + b"".join(array.tobytes() for array in arrays))


def _documents(count: int, end: int | None = 0) -> list[list[int]]:
    numbers = np.random.default_rng(0)
    rows = [numbers.integers(1, 400, numbers.integers(3, 40)).tolist() for _ in range(count)]
    return [row if end is None else [*row, end] for row in rows]


def _corpus(root: Path, vocab_size: int = 400, **source) -> Corpus:
    return Corpus.find(TextSource(root=str(root), **source), "data", 16, vocab_size, "auto")


def _tokens(files: TokenFiles) -> list[int]:
    return files.read(np.arange(len(files))).ravel().tolist()


@pytest.mark.parametrize("kind", ["<u2", "<i4"])
def test_the_type_and_the_ends_are_those_of_the_index(tmp_path: Path, kind: str):
    documents = _documents(50)
    write(tmp_path / "web_text_document.bin", documents, kind)
    corpus = _corpus(tmp_path)
    files = corpus.open_train()
    flat = [token for document in documents for token in document]
    assert _tokens(files) == flat[: len(files) * 16]
    assert corpus.eos_id() == 0
    note = f"{tmp_path}: 50 documents by the indices, which end with id 0"
    assert files.notes == (note,)


def test_documents_without_an_end_are_told(tmp_path: Path):
    write(tmp_path / "a.bin", _documents(50, end=None))
    corpus = _corpus(tmp_path)
    assert "do not end with one id" in corpus.open_train().notes[0]
    assert corpus.eos_id() is None


def test_a_width_that_is_not_that_of_the_index_is_one_line(tmp_path: Path):
    write(tmp_path / "a.bin", _documents(50), "<i4")
    with pytest.raises(InputError, match=r"a\.bin: its index says uint32; set data\.raw\.dtype=ui"):
        _corpus(tmp_path, raw=RawTokens("uint16")).open_train()
    write(tmp_path / "b.bin", _documents(50), "<u2")
    with pytest.raises(InputError, match=r"one type of ids, here uint32 in .*a\.bin, uint16 in"):
        _corpus(tmp_path).open_train()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda bin_, idx: (bin_ + b"\0\0", idx), r"a\.bin: has \d+ bytes, its index a\.idx says"),
        (lambda bin_, idx: (bin_, idx[:-8]), r"a\.idx: is cut short"),
        (lambda bin_, idx: (bin_, b"not" + idx), r"a\.idx: is no index of Megatron's"),
        (lambda bin_, idx: (bin_, idx[:-8] + b"\xff" * 7 + b"\x0f"), r"a\.idx: is damaged"),
    ],
)
def test_a_damaged_index_is_one_line(tmp_path: Path, change, complaint: str):
    path = tmp_path / "a.bin"
    write(path, _documents(50))
    for file, content in zip(
        (path, path.with_suffix(".idx")),
        change(path.read_bytes(), path.with_suffix(".idx").read_bytes()),
        strict=True,
    ):
        file.write_bytes(content)
    with pytest.raises(InputError, match=complaint):
        read_index(path)


def test_a_type_that_is_too_wide_is_named(tmp_path: Path):
    write(tmp_path / "a.bin", _documents(5), "<i8")
    with pytest.raises(InputError, match="its index says int64; token files are read as uint16"):
        read_index(tmp_path / "a.bin")


def test_files_of_nanogpt_are_splits_by_their_names(tmp_path: Path):
    """Without an index: 16 bits, and a sample tells another width."""
    tokens = np.random.default_rng(0).integers(0, 400, 4000)
    tokens.astype("<u2").tofile(tmp_path / "train.bin")
    tokens[::-1].astype("<u2").tofile(tmp_path / "val.bin")
    corpus = _corpus(tmp_path)
    validation = corpus.open_validation()
    assert validation is not None
    assert _tokens(corpus.open_train()) == tokens.tolist()
    assert _tokens(validation) == tokens[::-1].tolist()
    assert corpus.eos_id() is None and common_end([]) is None
    (tmp_path / "train.bin").rename(tmp_path / "other.bin")
    assert _tokens(_corpus(tmp_path).open_train()) == tokens.tolist()
    tokens.astype("<u4").tofile(tmp_path / "train.bin")
    with pytest.raises(InputError, match=r"train\.bin: its ids look like uint32.*dtype=uint32"):
        _corpus(tmp_path).open_train()


def test_the_header_of_another_program_is_named(tmp_path: Path):
    head = np.array([20240520, 1, 4000, *[0] * 253], "<i4").tobytes()
    (tmp_path / "a.bin").write_bytes(head + np.arange(400, dtype="<u2").tobytes())
    with pytest.raises(InputError, match=r"a\.bin: begins with the header of llm\.c"):
        _corpus(tmp_path).open_train()


def test_bin_files_beside_npy_are_no_tokens(tmp_path: Path):
    tokens = np.random.default_rng(0).integers(0, 400, 4000)
    tokens.astype("<u2").tofile(tmp_path / "a.npy")
    (tmp_path / "notes.bin").write_bytes(b"\xff" * 10)
    files = _corpus(tmp_path).open_train()
    assert [file.path.name for file in files.files] == ["a.npy"]
