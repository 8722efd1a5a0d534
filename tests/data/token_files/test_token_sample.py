from pathlib import Path

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.token_files.manifest import Dtype
from jaxpretrain.data.token_files.token_sample import (
    check_type,
    check_vocabulary,
    most_common,
    other_type,
    read_sample,
)

KINDS = ("<u2", "<u4", "<u8", ">u2", ">u4", ">u8")


def _ids(name: str) -> np.ndarray:
    random = np.random.default_rng(0)
    if name == "even":
        return random.integers(1, 500, 4096)
    if name == "large":
        return random.integers(1, 50_280, 4096)
    if name == "very large":
        return random.integers(1, 100_278, 4096)
    if name == "text":  # most are small, as in text
        return np.minimum(random.zipf(1.1, 8192) - 1, 65_535)
    raise KeyError(name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "dtype", "vocab_size"),
    [
        *[("even", "uint16", 512), ("even", "uint32", 512), ("even", "uint16", 50_280)],
        *[("large", "uint16", 50_280), ("large", "uint32", 50_280)],
        *[("text", "uint16", 65_536), ("text", "uint32", 65_536)],
    ],
)
def test_every_type_is_told_from_the_one_that_is_expected(
    name: str, dtype: Dtype, vocab_size: int, kind: str
):
    sample = _ids(name).astype(kind).tobytes()
    own = np.dtype(dtype).newbyteorder("<").str
    found = other_type(sample, dtype, vocab_size)
    if (dtype, vocab_size, kind) == ("uint32", 65_536, ">u2"):
        assert found in ("<u2", ">u2")
    else:
        assert found == (None if kind == own else kind)


@pytest.mark.parametrize("kind", ["<u4", "<u8", ">u4", ">u8"])
@pytest.mark.parametrize("vocab_size", [50_280, 65_536])
def test_wider_ids_of_a_larger_vocabulary_are_told_too(kind: str, vocab_size: int):
    """Their upper words are 0 and 1, where the lower ones are anything."""
    assert other_type(_ids("very large").astype(kind).tobytes(), "uint16", vocab_size) == kind


@pytest.mark.parametrize("kind", ["<u4", "<u8"])
def test_wider_ids_that_are_mostly_padding_are_told(kind: str):
    ids = np.zeros(8192, int)
    ids[:300] = _ids("even")[:300]
    assert other_type(ids.astype(kind).tobytes(), "uint16", 512) == kind


@pytest.mark.parametrize("vocab_size", [5, 257, 65_536])
def test_few_different_ids_are_no_wider_type(vocab_size: int):
    ids = np.random.default_rng(0).integers(0, min(vocab_size, 257), 8192)
    assert other_type(ids.astype("<u2").tobytes(), "uint16", vocab_size) is None
    assert other_type(ids.astype("<u4").tobytes(), "uint32", vocab_size) is None


def test_padding_in_a_row_is_no_wider_type():
    ids = np.zeros(8192, "<u2")
    ids[1000:1200] = _ids("large")[:200]
    assert other_type(ids.tobytes(), "uint16", 50_280) is None
    assert other_type(np.zeros(8192, "<u2").tobytes(), "uint16", 50_280) is None


def test_an_id_outside_the_vocabulary_alone_is_no_other_type():
    ids = _ids("large").astype("<u2")
    ids[7] = 50_281
    assert other_type(ids.tobytes(), "uint16", 50_280) is None


def _message(sample: bytes, dtype: Dtype, vocab_size: int) -> str:
    with pytest.raises(InputError) as error:
        check_type(Path("a.npy"), sample, dtype, vocab_size, "data")
    return str(error.value)


def test_the_error_says_what_to_set_and_how_to_insist():
    message = _message(_ids("even").astype("<u4").tobytes(), "uint16", 512)
    assert message.startswith("a.npy: its ids look like uint32, not like little-endian uint16")
    assert "set data.dtype=uint32. If" in message and "data.trust_dtype=true" in message


def test_the_error_says_how_to_rewrite_what_cannot_be_read(tmp_path: Path):
    message = _message(_ids("very large").astype(">u4").tobytes(), "uint32", 100_278)
    assert "big-endian uint32" in message
    assert "np.fromfile(file, '>u4').astype('<u4').tofile(new_file)" in message
    message = _message(_ids("even").astype("<u8").tobytes(), "uint32", 512)
    assert "int64" in message and ".astype('<u2')" in message and "data.dtype=uint16" in message


def test_uint16_cannot_hold_a_large_vocabulary():
    check_vocabulary("uint16", 65_536, "tokens", "x")
    check_vocabulary("uint32", 100_278, "tokens", "x")
    with pytest.raises(InputError, match="tokens: uint16 cannot hold .* 65,537; set x.dtype="):
        check_vocabulary("uint16", 65_537, "tokens", "x")


@pytest.mark.parametrize("num_ids", [0, 3, 5000, 20_001, 100_000])
def test_a_sample_is_whole_groups_of_the_beginning_the_middle_and_the_end(
    tmp_path: Path, num_ids: int
):
    path = tmp_path / "a.npy"
    ids = np.arange(num_ids, dtype="<u2")
    ids.tofile(path)
    sample = np.frombuffer(read_sample(path), "<u2")
    assert not np.any(sample[::4] % 4)  # 8 bytes are 4 ids: they begin where they do in the file
    if num_ids <= 12_288:
        np.testing.assert_array_equal(sample, ids)
    else:
        assert len(sample) == 12_288
        middle = num_ids // 2 // 4 * 4
        for start in (0, middle, (num_ids - 4096) // 4 * 4):
            assert ids[start] in sample[::4096]


def test_the_most_common_id_and_its_share():
    assert most_common(np.array([3, 7, 7, 7], "<u4").tobytes(), "uint32") == (7, 0.75)
    assert most_common(b"", "uint16") == (0, 0.0)
