from pathlib import Path

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.prepare.documents import Document
from jaxpretrain.data.prepare.token_writer import SplitWriter
from jaxpretrain.storage.files import sha256_of


def _document(number: int) -> Document:
    return Document("train", f"text {number}", f"text {number}".encode())


def _tokens(number: int) -> np.ndarray:
    return np.full(number + 1, number)


def _writer(folder: Path, spec: str = "spec", part_tokens: int = 10) -> SplitWriter:
    return SplitWriter(folder, "train", spec, np.dtype("uint16"), part_tokens)


def _write(writer: SplitWriter, numbers: range) -> list[int]:
    """Gives the documents to the writer; returns which had to be tokenized."""
    added = []
    for number in numbers:
        if not writer.skip(_document(number)):
            writer.add(_document(number), _tokens(number), byte_exact=True)
            added.append(number)
    return added


def test_parts_end_with_the_document_that_fills_them(tmp_path: Path):
    writer = _writer(tmp_path)
    _write(writer, range(8))
    split = writer.finish()
    contents = [np.fromfile(tmp_path / file.name, "<u2").tolist() for file in split.files]
    first, second = [0, 1, 1, 2, 2, 2, 3, 3, 3, 3], [4] * 5 + [5] * 6
    assert contents == [first, second, [6] * 7 + [7] * 8]
    assert split.num_documents == 8
    assert split.num_tokens == sum(map(len, contents)) == 36
    assert split.num_bytes == 8 * len("text 0")
    for file in split.files:
        assert file.num_bytes == (tmp_path / file.name).stat().st_size == 2 * file.num_tokens
        assert file.sha256 == sha256_of(tmp_path / file.name)


def test_an_interrupted_split_ends_as_an_uninterrupted_one(tmp_path: Path):
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    whole = _writer(tmp_path / "whole")
    _write(whole, range(20))
    broken = _writer(tmp_path / "broken")
    _write(broken, range(7))
    broken.discard()
    left = sorted(path.name for path in (tmp_path / "broken" / "train").glob("*.npy*"))
    assert left == ["part-00000.npy", "part-00001.npy"]
    again = _writer(tmp_path / "broken")
    assert again.num_finished == 6
    assert _write(again, range(20)) == list(range(6, 20))
    assert again.finish() == whole.finish()
    for path in (tmp_path / "whole" / "train").iterdir():
        assert (tmp_path / "broken" / "train" / path.name).read_bytes() == path.read_bytes()


def test_a_part_that_is_not_whole_is_written_again(tmp_path: Path):
    _write(_writer(tmp_path), range(20))
    (tmp_path / "train" / "part-00001.npy").write_bytes(b"12")
    assert _write(_writer(tmp_path), range(20))[0] == 4


def test_what_a_killed_process_left_is_removed(tmp_path: Path):
    writer = _writer(tmp_path)
    writer.add(_document(0), _tokens(0), True)
    assert list((tmp_path / "train").iterdir())
    _writer(tmp_path)
    assert not list((tmp_path / "train").iterdir())


def test_changed_documents_are_noticed(tmp_path: Path):
    _write(_writer(tmp_path), range(6))
    with pytest.raises(InputError, match="documents changed"):
        _write(_writer(tmp_path), range(1, 20))


def test_missing_documents_are_noticed(tmp_path: Path):
    _write(_writer(tmp_path), range(6))
    writer = _writer(tmp_path)
    _write(writer, range(5))
    with pytest.raises(InputError, match="documents changed"):
        writer.finish()


def test_parts_of_another_dataset_are_refused(tmp_path: Path):
    _write(_writer(tmp_path), range(6))
    with pytest.raises(InputError, match="belongs to another dataset"):
        _writer(tmp_path, spec="other")


def test_one_inexact_document_is_remembered_over_an_interruption(tmp_path: Path):
    writer = _writer(tmp_path)
    writer.add(_document(20), _tokens(20), byte_exact=False)
    writer.add(_document(21), _tokens(21), byte_exact=True)
    assert not writer.byte_exact
    again = _writer(tmp_path)
    assert again.skip(_document(20)) and again.skip(_document(21))
    assert not again.byte_exact


def test_the_content_hash_does_not_depend_on_the_tokens(tmp_path: Path):
    splits = []
    for name, factor in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        writer = _writer(tmp_path / name)
        for number in range(5):
            writer.add(_document(number), np.tile(_tokens(number), factor), True)
        splits.append(writer.finish())
    assert splits[0].content_sha256 == splits[1].content_sha256
    assert splits[0].files != splits[1].files
