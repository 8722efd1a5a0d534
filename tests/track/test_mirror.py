import json
import os
import shutil
from pathlib import Path

import pytest

from jaxpretrain.checkpoints.rewind import ABANDONED
from jaxpretrain.config.errors import InputError
from jaxpretrain.storage.jsonl import JsonlWriter, add_part, drop_after, read_lines
from jaxpretrain.track.mirror import Mirror, identity
from tests.reports.conftest import make_run
from tests.track.conftest import CONFIG, Recorder, write_steps, write_sweep


def mirrored(workdir: Path, recorder: Recorder) -> None:
    """Sends what is new, as one session."""
    mirror = Mirror(workdir, "wandb", recorder)
    mirror.send()
    mirror.close()


def record_of(workdir: Path) -> dict[tuple[int, str], float]:
    """All numbers of metrics.jsonl by step and name."""
    return {
        (line["step"], name): value
        for line in read_lines(workdir / "metrics.jsonl")
        for name, value in line.items()
        if name not in ("step", "time") and value is not None
    }


def numbers_in(recorder: Recorder, place: int = -1) -> dict[tuple[int, str], float]:
    """All numbers of a run by step and name; none may be there twice."""
    found = [((x.step, n), v) for x in recorder.lines(place) for n, v in x.values.items()]
    assert len(dict(found)) == len(found)
    return dict(found)


def test_a_tracker_has_all_numbers_of_the_record_bit_for_bit(workdir: Path) -> None:
    recorder = Recorder()
    mirrored(workdir, recorder)
    assert numbers_in(recorder) == record_of(workdir)
    assert [line.time for line in recorder.lines()] == [
        line["time"] for line in read_lines(workdir / "metrics.jsonl")
    ]
    assert recorder.kinds("config") == [({"config": CONFIG, "versions": {"jax": "1"}},)]
    assert recorder.kinds("text") == [(s, "samples/0", f"a <b>|{s}") for s in (5, 10)]
    assert recorder.kinds("picture") == [(s, "digits/reconstructions") for s in (5, 10)]
    columns = ["subject", "metric", "value"]
    rows = {s: [("sotu", "loss", 1 / s)] for s in (5, 10)}
    assert recorder.kinds("table") == [(s, "eval/table", columns, rows[s]) for s in rows]


def test_lines_are_sent_as_they_come_and_none_twice(workdir: Path) -> None:
    recorder = Recorder()
    mirror = Mirror(workdir, "wandb", recorder)
    mirror.send()
    mirror.send()
    write_steps(workdir, range(11, 16))
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 16, "ti')  # is being written
    mirror.send()
    drop_after(workdir / "metrics.jsonl", 15)
    assert numbers_in(recorder) == record_of(workdir)
    assert len(recorder.kinds("picture")) == len(recorder.kinds("text")) == 3


def test_a_resume_that_repeats_steps_sends_them_once(workdir: Path) -> None:
    recorder = Recorder()
    mirrored(workdir, recorder)
    drop_after(workdir / "metrics.jsonl", 7)  # its newest checkpoint
    drop_after(workdir / "samples.jsonl", 7)
    JsonlWriter(workdir / "metrics.jsonl").write(7, {"run/num_devices": 1})
    write_steps(workdir, range(8, 10))
    mirrored(workdir, recorder)  # it stops before it is where it was
    write_steps(workdir, range(10, 13))
    mirrored(workdir, recorder)
    write_steps(workdir, range(13, 21))
    mirrored(workdir, recorder)
    assert len(recorder.runs) == 1 and len({run.key for run in recorder.opened}) == 1
    expected = {k: x for k, x in record_of(workdir).items() if k != (7, "run/num_devices")}
    assert numbers_in(recorder) == expected
    assert [step for step, *_ in recorder.kinds("text")] == [5, 10, 15, 20]
    assert [step for step, *_ in recorder.kinds("picture")] == [5, 10, 15, 20]
    assert [step for step, *_ in recorder.kinds("table")] == [5, 10, 15, 20]


def test_results_of_the_newest_step_that_come_later_are_sent(workdir: Path) -> None:
    recorder = Recorder()
    mirrored(workdir, recorder)
    JsonlWriter(workdir / "metrics.jsonl").write(10, {"eval/arc/acc": 0.25})
    mirrored(workdir, recorder)
    assert numbers_in(recorder) == record_of(workdir)
    assert recorder.kinds("table")[-1][3] == [("arc", "acc", 0.25)]


def test_after_a_rewind_a_new_run_of_the_group_has_the_whole_record(workdir: Path) -> None:
    recorder = Recorder()
    mirrored(workdir, recorder)
    before = record_of(workdir)
    folder = workdir / ABANDONED / "1"
    folder.mkdir(parents=True)
    note = {"to_step": 5, "from_step": 10, "time": "2026-01-01T00:00:00+00:00"}
    (folder / "rewind.json").write_text(json.dumps(note))
    drop_after(workdir / "metrics.jsonl", 5)
    JsonlWriter(workdir / "metrics.jsonl").write(6, {"train/loss": 77.0})
    mirrored(workdir, recorder)
    mirrored(workdir, recorder)
    first, second, again = recorder.opened
    assert first.key != second.key == again.key
    assert first.group == second.group == "nano"
    assert (first.name, second.name) == ("nano", "nano (rewind 1)")
    assert numbers_in(recorder, 0) == before
    assert numbers_in(recorder, 1) == record_of(workdir)


def test_another_place_gets_all_of_the_run_under_another_key(workdir: Path) -> None:
    first, second = Recorder("offline"), Recorder("https://here/team/project")
    mirrored(workdir, first)
    mirrored(workdir, second)
    mirrored(workdir, first)
    assert numbers_in(first) == numbers_in(second) == record_of(workdir)
    assert first.opened[0].key == first.opened[1].key != second.opened[0].key


def test_after_a_failure_another_mirror_sends_the_rest(workdir: Path) -> None:
    recorder = Recorder()
    mirrored(workdir, recorder)
    write_steps(workdir, range(11, 14))
    recorder.num_lines_left = 0
    with pytest.raises(ConnectionError):
        mirrored(workdir, recorder)
    recorder.num_lines_left = 100
    mirrored(workdir, recorder)
    assert numbers_in(recorder) == record_of(workdir)


def test_at_the_end_come_findings_items_and_the_report(tmp_path: Path) -> None:
    folder, recorder = make_run(tmp_path / "run", "bad_batch"), Recorder()
    items = [{"step": 9, "task": "arc", "choices": [1.5, 2]}, {"step": 9, "label": None}]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    for _ in range(2):
        mirror = Mirror(folder, "wandb", recorder)
        mirror.finish()
    (report, size), _ = recorder.kinds("artifact")
    assert report == "report.html" and size > 1e6
    alerts = [key for (key,) in recorder.kinds("alert")]
    assert alerts and len(set(alerts)) == len(alerts)
    tables = [table for table in recorder.kinds("table") if table[1] == "eval/items"]
    rows = [[9, "arc", "[1.5, 2]", None], [9, None, None, None]]
    assert tables == [(9, "eval/items", ["step", "task", "choices", "label"], rows)]


@pytest.mark.parametrize("name", ["peak/seed3", "peak/clip=1/seed3"])
def test_a_run_of_a_sweep_has_its_group_arm_and_seed(workdir: Path, name: str) -> None:
    sweep = workdir.parent / "ablation"
    sweep.mkdir()
    write_sweep(sweep, {name: 3})
    shutil.move(workdir, sweep / name)
    found = identity(sweep / name, "k", 0)
    assert (found.name, found.group) == (name, "ablation")
    assert found.labels == {"arm": "peak", "seed": "3"}
    shutil.copytree(sweep / name, sweep / "other" / "seed3")  # of no sweep
    assert identity(sweep / "other" / "seed3", "k", 0).group == "seed3"


def test_what_is_no_run_and_a_damaged_note_are_input_errors(workdir: Path) -> None:
    with pytest.raises(InputError, match="experiment.json"):
        Mirror(workdir.parent, "wandb", Recorder())
    state = workdir / "trackers" / "wandb.json"
    state.parent.mkdir()
    state.write_text('{"here": {"key": 3}}')
    with pytest.raises(InputError, match="wandb.json"):
        Mirror(workdir, "wandb", Recorder())
    assert os.listdir(state.parent) == ["wandb.json"]


def test_a_run_in_a_bucket_is_sent_as_its_parts_come(bucket: Path, workdir: Path) -> None:
    run, recorder = bucket / "run", Recorder()
    (run / "experiment.json").write_text((workdir / "experiment.json").read_text())
    lines = (workdir / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    add_part(run / "metrics.jsonl", b"".join(lines[:6]))
    mirror = Mirror(run, "wandb", recorder)
    mirror.send()
    add_part(run / "metrics.jsonl", b"".join(lines[4:]))  # two steps were made again
    mirror.send()
    mirrored(run, recorder)
    assert numbers_in(recorder) == record_of(workdir)
    assert (run / "trackers" / "wandb.json").exists()
