import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from jaxpretrain.replay.__main__ import main
from jaxpretrain.report import main as report
from tests.replay.conftest import contents


@pytest.fixture(scope="module")
def workdir(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(plain, tmp_path_factory.mktemp("console") / "run")


def test_a_replay_is_kept_and_only_it_is_new(run_command: Any, workdir: Path):
    before = contents(workdir)
    flags = (f"--workdir={workdir}", "--steps=7-9", "--twice", "--without=8")
    code, output, _ = run_command(main, *flags, "--config.optim.clip_norm=0.5", "--json")
    document = json.loads(output)
    assert code == 0 and contents(workdir) == before
    folder = workdir / "replays" / "7-9"
    assert {path.name for path in folder.iterdir()} == {"replay.json"}
    kept = json.loads((folder / "replay.json").read_text())
    assert document == kept | {"folder": str(folder)}
    assert kept["proof"]["words"].startswith("identical: 5 of 5 steps are recorded")
    assert kept["twice"] == "computed twice: the same bits in all 5 steps"
    assert [one["name"] for one in kept["arms"]] == ["--without=8", "--config.optim.clip_norm=0.5"]
    assert [one["step"] for one in kept["metrics"]] == [5, 6, 7, 8, 9]
    assert len(kept["closer"]) == 6


def test_losses_that_are_not_those_of_the_run_are_an_exit_code(
    run_command: Any, workdir: Path, tmp_path: Path
):
    other = shutil.copytree(workdir, tmp_path / "run")
    path = other / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["step"] == 14 and "train/loss" in line:
            line["train/loss"] *= 1.01
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = tmp_path / "kept"
    flags = (f"--workdir={other}", "--steps=13-15", "--examples=0", f"--output={output}")
    code, told, _ = run_command(main, *flags)
    assert code == 3
    assert "the same steps? differs: first at step 14, in loss, by 0.0099 of its value" in told
    assert told.rstrip().endswith(f"kept in {output}")  # a report of the run knows nothing of it
    assert (output / "replay.json").exists() and not (other / "replays" / "13-15").exists()


def test_images_are_shown_with_their_patches_and_errors(
    run_command: Any, images: Path, tmp_path: Path
):
    workdir = shutil.copytree(images, tmp_path / "run")
    flags = (f"--workdir={workdir}", "--steps=5-6", "--without=5", "--examples=2")
    code, told, _ = run_command(main, *flags)
    assert code == 0 and "the same steps? identical: 2 of 2 steps are recorded" in told
    kept = json.loads((workdir / "replays" / "5-6" / "replay.json").read_text())
    assert kept["documents"] == [] and len(kept["closer"]) == 2 and len(kept["arms"]) == 1
    for one in kept["closer"]:
        assert len(one["losses"]) == 16 and one["losses"].count(0.0) == 4
        png = (workdir / "replays" / "5-6" / one["picture"]).read_bytes()
        assert png[1:4] == b"PNG"
    report([str(workdir)])
    html = (workdir / "report.html").read_text()
    assert html.count("image, seen patches, prediction, errors</figcaption>") == 2


def test_bad_input_is_one_line_and_code_2(run_command: Any, workdir: Path):
    for flag, line in (
        ("--steps=40-50", "error: --steps=40-50: the run in .* has got to step 16"),
        ("--examples=-1", "error: --examples=-1: must be 0 or more"),
        ("--config.optim.clip=1", "error: --config.optim.clip: no such field"),
    ):
        code, _, said = run_command(main, f"--workdir={workdir}", "--steps=7-9", flag)
        last = said.strip().splitlines()[-1]
        assert code == 2 and re.match(line, last), last


def test_an_output_that_is_a_file_is_one_line(run_command: Any, workdir: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    flags = (f"--workdir={workdir}", "--steps=7-9", f"--output={tmp_path}/file")
    code, _, error = run_command(main, *flags)
    assert code == 2 and "file: no folder can be made there (File exists)" in error
