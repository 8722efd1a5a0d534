"""The local files of a run in a bucket, and when they get there."""

import pytest

from jaxpretrain.storage import staging as module
from jaxpretrain.storage.jsonl import JsonlWriter, read_lines
from jaxpretrain.storage.staging import Staging, local_folder


def test_a_folder_on_a_disk_is_its_own(tmp_path) -> None:
    assert local_folder(tmp_path) == tmp_path


def test_each_publishing_adds_a_part_of_the_lines_since_the_last(bucket) -> None:
    staging = Staging(bucket / "run", ["metrics.jsonl"], print)
    writer = JsonlWriter(staging.folder / "metrics.jsonl")
    writer.write(1, {"train/loss": 3.0})
    staging.publish()
    staging.publish()  # nothing is new
    writer.write(2, {"train/loss": 2.0})
    with (staging.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3')  # under way
    staging.publish()
    names = [path.name for path in sorted((bucket / "run" / "metrics").glob("*"))]
    assert names == ["00000000.jsonl", "00000001.jsonl"]
    assert [line["step"] for line in read_lines(bucket / "run" / "metrics.jsonl")] == [1, 2]


def test_other_files_are_brought_whole_where_they_have_changed(bucket) -> None:
    (bucket / "run" / "events.1").write_bytes(b"old")
    (bucket / "run" / "events.2").write_bytes(b"same")
    staging = Staging(bucket / "run", [], print)
    for name in ("events.1", "events.2"):
        staging.fetch(bucket / "run" / name)
    (staging.folder / "events.1").write_bytes(b"older")
    (staging.folder / "pictures" / "a").mkdir(parents=True)
    (staging.folder / "pictures" / "a" / "1.png").write_bytes(b"png")
    (bucket / "run" / "events.2").unlink()  # so that another copy would be seen
    staging.publish()
    assert (bucket / "run" / "events.1").read_bytes() == b"older"
    assert (bucket / "run" / "pictures" / "a" / "1.png").read_bytes() == b"png"
    assert not (bucket / "run" / "events.2").exists()


def test_a_failure_is_one_line_and_made_up_for(bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = []
    staging = Staging(bucket / "run", ["metrics.jsonl"], lines.append)
    JsonlWriter(staging.folder / "metrics.jsonl").write(1, {})
    with monkeypatch.context() as broken:
        broken.setattr(module.jsonl, "add_part", lambda *_: (_ for _ in ()).throw(OSError("no")))
        staging.publish()
    assert lines == ["warning: gs://bucket/run: files are not brought up to date: no"]
    staging.publish()
    assert len(read_lines(bucket / "run" / "metrics.jsonl")) == 1
