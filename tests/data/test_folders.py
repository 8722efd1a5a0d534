from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.folders import Found, files_below, find_files


def _make(root: Path, *names: str, size: int = 10) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)


def _below(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in files_below(root)[0]]


def _find(root: Path) -> Found:
    return find_files(
        root,
        lambda path: path.suffix == ".txt",
        what="texts",
        if_none="add some",
        if_few="list them",
    )


def test_files_come_sorted_by_their_folders(tmp_path: Path):
    _make(tmp_path, "b.txt", "a/z.txt", "a-b/c.txt", "a/b/c.txt")
    assert _below(tmp_path) == ["a/b/c.txt", "a/z.txt", "a-b/c.txt", "b.txt"]


def test_linked_folders_and_files_are_followed(tmp_path: Path):
    _make(tmp_path / "elsewhere", "c.txt", "deep/d.txt")
    _make(tmp_path / "root", "a.txt")
    (tmp_path / "root" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "b.txt").symlink_to(tmp_path / "elsewhere" / "c.txt")
    assert _below(tmp_path / "root") == ["a.txt", "b.txt", "more/c.txt", "more/deep/d.txt"]
    (tmp_path / "link").symlink_to(tmp_path / "root")
    assert len(_below(tmp_path / "link")) == 4


def test_loops_of_links_end_and_nothing_counts_twice(tmp_path: Path):
    _make(tmp_path, "a/x.txt", "b/y.txt")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "other").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "other").symlink_to(tmp_path / "a")
    (tmp_path / "0").symlink_to(tmp_path / "b")
    assert _below(tmp_path) == ["a/x.txt", "b/y.txt"]


def test_a_link_that_leads_nowhere_is_not_missed(tmp_path: Path):
    _make(tmp_path, "a.txt")
    (tmp_path / "b.txt").symlink_to(tmp_path / "absent.txt")
    assert _below(tmp_path) == ["a.txt", "b.txt"]


def test_names_that_begin_with_a_dot_are_left_out(tmp_path: Path):
    root = tmp_path / ".cache"  # what is named is taken, whatever its name
    _make(root, "a.txt", "._a.txt", ".hidden/f.txt")
    assert _below(root) == ["a.txt"]
    assert _find(root)[1] == (f"{root}: skipped 2 hidden",)


def test_what_is_skipped_is_counted_by_kind(tmp_path: Path):
    _make(tmp_path, "a.txt", "b.txt", "c.txt", "d.txt.bz2", "e.PARQUET", "LICENSE", size=1)
    found = _find(tmp_path)
    assert [path.name for path in found[0]] == ["a.txt", "b.txt", "c.txt"]
    assert found[1] == (f"{tmp_path}: skipped 1 .bz2, 1 .parquet, 1 without a suffix",)
    (tmp_path / "only").mkdir()
    _make(tmp_path / "only", "a.txt")
    assert _find(tmp_path / "only")[1] == ()


def test_many_kinds_of_skipped_files_are_told_as_the_commonest_and_a_sum(tmp_path: Path):
    _make(tmp_path, *(f"{i}.txt" for i in range(50)))
    _make(tmp_path, *(f"a.{kind}" for kind in "cdefghijk"), "b.k", "c.k", ".hidden", size=1)
    common = ", ".join(f"1 .{kind}" for kind in "cdefghi")
    assert _find(tmp_path)[1] == (
        f"{tmp_path}: skipped {common}, 3 .k, 1 of 1 more kinds, 1 hidden",
    )


@pytest.mark.parametrize("num_bytes", [1, 1000])
def test_a_folder_that_is_mostly_of_other_kinds_is_refused(tmp_path: Path, num_bytes: int):
    _make(tmp_path, "a.txt", "b.txt")
    others = ["c.parquet"] if num_bytes > 20 else ["c.parquet", "d.bz2", "e.lz4"]
    _make(tmp_path, *others, size=num_bytes)
    with pytest.raises(InputError, match=r"most of it would be skipped \(1 .*, or list them"):
        _find(tmp_path)


def test_large_files_that_hold_no_corpus_are_no_reason_to_refuse(tmp_path: Path):
    _make(tmp_path, "a.txt", "b.txt")
    _make(tmp_path, "c.png", size=1000)
    assert _find(tmp_path)[1] == (f"{tmp_path}: skipped 1 .png",)


def test_files_that_describe_others_of_their_name_are_no_reason_to_refuse(tmp_path: Path):
    _make(tmp_path, "1.txt", "2.txt")
    _make(tmp_path, "1.json", "2.json", "1.xml", "2.csv.gz", "2.xml", size=1000)
    assert _find(tmp_path)[1] == (f"{tmp_path}: skipped 1 .gz, 2 .json, 2 .xml",)


def test_a_folder_without_such_files_says_what_it_holds(tmp_path: Path):
    _make(tmp_path, "a.parquet", "b.parquet")
    with pytest.raises(InputError, match=r"holds no texts, but 2 \.parquet; add some"):
        _find(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no texts, but nothing; add some"):
        _find(tmp_path / "empty")


def test_a_folder_that_cannot_be_read_is_one_line(tmp_path: Path):
    with pytest.raises(InputError, match="absent: cannot be read"):
        files_below(tmp_path / "absent")
