"""Copies of a bucket's files on this machine."""

import base64
import hashlib

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.storage import copies
from jaxpretrain.storage.copies import local_copy


def test_a_local_path_is_its_own_copy(tmp_path) -> None:
    assert local_copy(tmp_path) is tmp_path


def test_the_wanted_files_of_a_folder_are_copied_once(bucket, monkeypatch) -> None:
    for name in ("train/a.npy", "train/b.npy", "manifest.json"):
        (bucket / "data" / name).write_bytes(name.encode() * 10)
    local = local_copy(bucket / "data", lambda name: not name.endswith("b.npy"))
    assert (local / "train" / "a.npy").read_bytes() == b"train/a.npy" * 10
    assert (local / "manifest.json").exists() and not (local / "train" / "b.npy").exists()
    monkeypatch.setattr(copies, "_copy_all", lambda *_: pytest.fail("copied again"))
    local_copy(bucket / "data", lambda name: not name.endswith("b.npy"))


def test_one_file_is_copied_and_made_anew_where_it_has_changed(bucket) -> None:
    (bucket / "list.txt").write_text("a.npy\n")
    assert local_copy(bucket / "list.txt").read_text() == "a.npy\n"
    (bucket / "list.txt").write_text("b.npy\nc.npy\n")
    assert local_copy(bucket / "list.txt").read_text() == "b.npy\nc.npy\n"


def test_an_interrupted_copy_goes_on_where_it_was(bucket, monkeypatch) -> None:
    (bucket / "a.npy").write_bytes(bytes(range(100)))
    monkeypatch.setattr(copies, "_BLOCK", 30)
    asked = []

    class Bucket:
        def __init__(self, fails_at):
            self.fails_at = fails_at

        def cat_file(self, path, start, end):
            if start == self.fails_at:
                raise OSError("cut")
            asked.append(start)
            return bytes(range(100))[start:end]

    monkeypatch.setattr(copies, "file_system", lambda _: Bucket(fails_at=60))
    with pytest.raises(OSError, match="cut"):
        local_copy(bucket / "a.npy")
    monkeypatch.setattr(copies, "file_system", lambda _: Bucket(fails_at=None))
    assert local_copy(bucket / "a.npy").read_bytes() == bytes(range(100))
    assert asked == [0, 30, 60, 90]


def test_what_is_not_there_is_one_line(bucket) -> None:
    with pytest.raises(InputError, match="^gs://bucket/none: there is no such file or folder$"):
        local_copy(bucket / "none")


def test_no_object_is_copied_out_of_its_folder(bucket, monkeypatch) -> None:
    found = {bucket / "data" / ".." / ".." / "evil": {"size": 1}}
    monkeypatch.setattr(copies, "list_files", lambda path: found)
    with pytest.raises(InputError, match="the object ../../evil would be copied out of its"):
        local_copy(bucket / "data")


def test_a_copy_with_another_hash_is_refused_and_removed(bucket) -> None:
    (bucket / "data" / "a.npy").write_bytes(b"ids")
    with pytest.raises(InputError, match=r"a\.npy: is damaged, its SHA-256 is not the manifest's"):
        local_copy(bucket / "data", hashes={"a.npy": "0" * 64})
    right = hashlib.sha256(b"ids").hexdigest()
    local = local_copy(bucket / "data", hashes={"a.npy": right})
    assert [path.name for path in local.iterdir()] == ["a.npy"]


def test_the_md5_of_the_bucket_is_compared(tmp_path) -> None:
    part = tmp_path / "part"
    part.write_bytes(b"ids")
    about = {"size": 3, "md5Hash": base64.b64encode(hashlib.md5(b"ids").digest()).decode()}
    assert copies._complaint(part, about, None) == ""
    part.write_bytes(b"idz")
    assert copies._complaint(part, about, None) == "its copy has another MD5"
    assert "has 3 bytes, not 4" in copies._complaint(part, {"size": 4}, None)
