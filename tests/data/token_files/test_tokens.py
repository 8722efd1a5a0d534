import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.token_files import tokens
from jaxpretrain.data.token_files.manifest import Dtype, load_manifest
from jaxpretrain.data.token_files.tokens import TokenFile, TokenFiles, open_raw, open_split

SEQ_LEN = 8
FLAG = "data"
LENGTHS = [50, 7, 0, 16, 100, 8]  # windows: 6, 0, 0, 2, 12, 1


def _write(folder: Path, dtype: Dtype = "uint16", vocab_size: int = 1000) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    files = [generator.integers(0, vocab_size, length) for length in LENGTHS]
    for number, file in enumerate(files):
        file.astype(np.dtype(dtype).newbyteorder("<")).tofile(folder / f"{number}.npy")
    return files


def _open(folder: Path, dtype: Dtype = "uint16", vocab_size: int = 1000) -> TokenFiles:
    paths = sorted(folder.glob("*.npy"))
    return open_raw(folder, paths, dtype=dtype, seq_len=SEQ_LEN, vocab_size=vocab_size, flag=FLAG)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_windows_are_olmos(tmp_path: Path, dtype: Dtype):
    """They run over the files in order, never cross one, and drop each one's remainder."""
    vocab_size = 60_000 if dtype == "uint16" else 100_000
    files = _write(tmp_path, dtype, vocab_size)
    expected = [
        file[start : start + SEQ_LEN]
        for file in files
        for start in range(0, len(file) - SEQ_LEN + 1, SEQ_LEN)
    ]
    opened = _open(tmp_path, dtype, vocab_size)
    assert len(opened) == len(expected) == 21
    assert opened.num_tokens == sum(LENGTHS)
    read = opened.read(np.arange(len(opened)))
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, expected)


def test_any_indices_in_any_order(tmp_path: Path):
    _write(tmp_path)
    opened = _open(tmp_path)
    whole = opened.read(np.arange(len(opened)))
    indices = np.array([20, 0, 5, 5, 6, 19, 7, 0])
    np.testing.assert_array_equal(opened.read(indices), whole[indices])
    assert opened.read(np.array([], np.int64)).shape == (0, SEQ_LEN)


LENGTH, SIZES = 4, [19, 3, 8, 25]


def _counted(folder: Path, chunk: int = 1) -> TokenFiles:
    """Files whose ids say where they are: 100 * file + position."""
    files = [TokenFile(folder / str(n), size, "") for n, size in enumerate(SIZES)]
    for number, file in enumerate(files):
        (100 * number + np.arange(file.num_tokens)).astype("<u2").tofile(file.path)
    return TokenFiles(files, "uint16", LENGTH, 1000, "", chunk)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5])
def test_each_file_is_cut_to_whole_chunks(tmp_path: Path, chunk: int):
    opened = _counted(tmp_path, chunk)
    expected = [
        100 * number + LENGTH * window
        for number, size in enumerate(SIZES)
        for window in range(size // (LENGTH * chunk) * chunk)
    ]
    assert len(opened) == len(expected)
    np.testing.assert_array_equal(
        opened.read(np.arange(len(opened))), np.add.outer(expected, np.arange(LENGTH))
    )


def test_no_files_are_no_windows():
    assert len(TokenFiles([], "uint16", LENGTH, 1000, "")) == 0


def test_the_oldest_file_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokens, "MAX_OPEN_FILES", 2)
    opened = _counted(tmp_path)
    firsts = {0: 0, 2: 4, 3: 6}  # file -> its first window; file 1 has none
    for number, (file, first) in enumerate(firsts.items(), start=1):
        assert opened.read(np.array([first]))[0, 0] == 100 * file
        assert len(opened._opened) == min(number, 2)
    assert list(opened._opened) == [2, 3]
    assert opened.read(np.array([1])).tolist() == [[4, 5, 6, 7]]


def test_a_file_that_is_gone_is_named(tmp_path: Path):
    opened = _counted(tmp_path)
    opened.files[2].path.unlink()
    with pytest.raises(InputError, match=r"2: cannot be read"):
        opened.read(np.array([4]))


@pytest.mark.parametrize("index", [-1, 21])
def test_an_index_outside_is_an_error(tmp_path: Path, index: int):
    _write(tmp_path)
    with pytest.raises(IndexError, match="of 21"):
        _open(tmp_path).read(np.array([0, index]))


def test_few_files_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokens, "MAX_OPEN_FILES", 2)
    _write(tmp_path)
    opened = _open(tmp_path)
    whole = opened.read(np.arange(len(opened)))
    indices = np.random.default_rng(0).integers(0, len(opened), 200)
    for index in indices:
        np.testing.assert_array_equal(opened.read(np.array([index])), whole[[index]])
        assert len(opened._opened) <= 2


def test_a_pickled_copy_reads_the_same_and_carries_no_data(tmp_path: Path):
    _write(tmp_path)
    opened = _open(tmp_path)
    before = opened.read(np.arange(len(opened)))
    pickled = pickle.dumps(opened)
    assert len(pickled) < 3000
    copy = pickle.loads(pickled)
    assert opened._opened and not copy._opened
    np.testing.assert_array_equal(copy.read(np.arange(len(opened))), before)


def test_places_are_where_examples_begin(tmp_path: Path):
    _write(tmp_path)
    opened = _open(tmp_path)
    assert opened.places(np.array([], np.int64)) == []
    indices = np.array([20, 0, 7, 6])
    for (path, start), example in zip(opened.places(indices), opened.read(indices), strict=True):
        np.testing.assert_array_equal(np.fromfile(path, "<u2")[start : start + SEQ_LEN], example)


def test_an_id_outside_the_vocabulary_is_located(tmp_path: Path):
    files = _write(tmp_path, vocab_size=900)
    for number in (950, 900):
        files[3][13] = number
        files[3].astype("<u2").tofile(tmp_path / "3.npy")
        opened = _open(tmp_path, vocab_size=900)
        opened.read(np.arange(7))  # the others are good
        text = rf"3\.npy: token 13 is {number}, .* vocabulary of 900"
        with pytest.raises(InputError, match=text):
            opened.read(np.array([0, 7, 8]))


def test_an_id_above_31_bits_is_not_taken_for_a_negative_one(tmp_path: Path):
    ids = np.zeros(SEQ_LEN, "<u4")
    ids[2] = 2**32 - 1
    ids.tofile(tmp_path / "0.npy")
    with pytest.raises(InputError, match="token 2 is 4294967295"):
        _open(tmp_path, "uint32").read(np.array([0]))


def test_a_numpy_file_with_a_header_is_refused(tmp_path: Path):
    np.save(tmp_path / "0.npy", np.zeros(100, np.uint16))
    with pytest.raises(InputError, match=r"0\.npy: is a NumPy file with a header"):
        _open(tmp_path)


def test_half_a_token_is_refused(tmp_path: Path):
    (tmp_path / "0.npy").write_bytes(b"12345")
    with pytest.raises(InputError, match=r"0\.npy: 5 bytes"):
        _open(tmp_path)


def test_a_repeated_path_counts_again(tmp_path: Path):
    """As in OLMo's lists of files, whose duplicates are part of the order."""
    _write(tmp_path)
    path = tmp_path / "3.npy"
    opened = open_raw(
        tmp_path, [path, path], dtype="uint16", seq_len=SEQ_LEN, vocab_size=1000, flag=FLAG
    )
    read = opened.read(np.arange(4))
    assert len(opened) == 4
    np.testing.assert_array_equal(read[:2], read[2:])


def _open_prepared(root: Path, verify: tokens.Verify = "auto", vocab_size: int = 400) -> TokenFiles:
    manifest = load_manifest(root)
    return open_split(root, manifest, "train", seq_len=16, vocab_size=vocab_size, verify=verify)


def test_a_prepared_split_is_its_files_end_to_end(prepared: Path):
    opened = _open_prepared(prepared)
    assert len(opened.files) > 1
    expected = []
    for path in sorted((prepared / "train").glob("*.npy")):
        ids = np.fromfile(path, "<u2")
        expected.append(ids[: len(ids) // 16 * 16].reshape(-1, 16))
    np.testing.assert_array_equal(opened.read(np.arange(len(opened))), np.concatenate(expected))


def _first_file(root: Path) -> Path:
    return root / "train" / "part-00000.npy"


def test_a_shorter_file_is_named(prepared: Path, tmp_path: Path):
    copy = shutil.copytree(prepared, tmp_path / "copy")
    _first_file(copy).write_bytes(_first_file(copy).read_bytes()[:-2])
    with pytest.raises(InputError, match=r"part-00000\.npy: has \d+ bytes, its manifest says"):
        _open_prepared(copy, "size")


def test_a_missing_file_is_named(prepared: Path, tmp_path: Path):
    copy = shutil.copytree(prepared, tmp_path / "copy")
    _first_file(copy).unlink()
    with pytest.raises(InputError, match=r"part-00000\.npy: cannot be read"):
        _open_prepared(copy)


def test_damage_is_found_by_hash_only(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    copy = shutil.copytree(prepared, tmp_path / "copy")
    content = bytearray(_first_file(copy).read_bytes())
    content[10] ^= 1
    _first_file(copy).write_bytes(content)
    for verify in ("auto", "hash"):
        with pytest.raises(InputError, match=r"part-00000\.npy: is damaged"):
            _open_prepared(copy, verify)
    assert _open_prepared(copy, "size").checked == "sizes match the manifest"
    monkeypatch.setattr(tokens, "HASHED_BY_DEFAULT", 10)
    assert _open_prepared(copy, "auto").checked == "sizes match the manifest"


def test_a_model_with_too_few_ids_is_refused(prepared: Path):
    with pytest.raises(InputError, match=r"model\.vocab_size to at least 400"):
        _open_prepared(prepared, vocab_size=399)


def test_ids_are_held_to_the_tokenizers_vocabulary_not_the_padded_one(prepared: Path):
    assert _open_prepared(prepared, vocab_size=512).vocab_size == 400


def test_an_unknown_split_names_the_known(prepared: Path):
    with pytest.raises(InputError, match="no split 'test'; its splits are train, validation"):
        open_split(
            prepared,
            load_manifest(prepared),
            "test",
            seq_len=8,
            vocab_size=400,
            verify="auto",
        )


def test_a_file_of_a_wider_type_is_refused_unless_one_insists(tmp_path: Path):
    path = tmp_path / "0.npy"
    ids = np.random.default_rng(0).integers(1, 500, 4096)
    ids.astype("<u4").tofile(path)
    options: dict[str, Any] = {"seq_len": SEQ_LEN, "vocab_size": 512}
    with pytest.raises(InputError, match=r"0\.npy: its ids look like uint32, .* data\.trust_dtype"):
        open_raw(tmp_path, [path], dtype="uint16", flag=FLAG, **options)
    assert open_raw(tmp_path, [path], dtype="uint32", flag=FLAG, **options).num_tokens == 4096
    insisted = open_raw(tmp_path, [path], dtype="uint16", flag=None, **options)
    assert insisted.num_tokens == 8192


def test_uint16_is_refused_for_a_larger_vocabulary_unless_one_insists(tmp_path: Path):
    _write(tmp_path)
    with pytest.raises(InputError, match="cannot hold the ids of a vocabulary of 70,000"):
        _open(tmp_path, vocab_size=70_000)
    paths = sorted(tmp_path.glob("*.npy"))
    options = {"dtype": "uint16", "seq_len": SEQ_LEN, "vocab_size": 70_000}
    assert len(open_raw(tmp_path, paths, flag=None, **options)) == 21


def test_files_that_are_mostly_one_id_are_told(tmp_path: Path):
    _write(tmp_path)
    assert _open(tmp_path).notes == ()
    np.repeat([5, 3], [970, 30]).astype("<u2").tofile(tmp_path / "2.npy")
    (note,) = _open(tmp_path).notes
    assert note.startswith("warning: 1 of 6 token files are mostly one id")
    assert f"in a sample of {tmp_path / '2.npy'}, 97% of the ids are 5" in note


def test_of_several_such_files_the_worst_is_told(tmp_path: Path):
    _write(tmp_path)
    for number, share in (("1", 900), ("2", 970), ("4", 800)):
        np.repeat([5, 3], [share, 1000 - share]).astype("<u2").tofile(tmp_path / f"{number}.npy")
    (note,) = _open(tmp_path).notes
    assert "3 of 6 token files" in note and "2.npy, 97% of the ids are 5" in note


def test_files_that_are_one_id_by_half_are_not_told(tmp_path: Path):
    _write(tmp_path)
    half = np.repeat([5, 3, 4], [500, 250, 250]).astype("<u2")
    half.tofile(tmp_path / "2.npy")
    assert _open(tmp_path).notes == ()
