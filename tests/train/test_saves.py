"""When saves are due and where they go; tests of the loop show how they are made and told."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpretrain.checkpoints.local import LocalCheckpoints
from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.parallel import timer
from jaxpretrain.storage.jsonl import read_lines
from jaxpretrain.train.experiment import Experiment, resolve
from jaxpretrain.train.program import Program
from jaxpretrain.train.run import train_experiment
from jaxpretrain.train.saves import Saver

anything: Any = None


def _saver(program: Program, local: bool, **changes: Any) -> Saver:
    timeline = replace(program.experiment.timeline, **changes)
    there: Any = object() if local else None
    return Saver(Path(), timeline, anything, there, anything, anything, anything, anything)


def _places(saver: Saver, num_steps: int) -> str:
    """The places of the steps in letters: w, l, or - for none."""
    return "".join((saver.due(step) or "-")[0] for step in range(1, num_steps + 1))


@pytest.mark.parametrize(
    ("every", "local", "expected"),
    [
        (4, False, "---w---w---w"),
        (4, True, "lllwlllwlllw"),
        (20, True, "-l-l-l-l-l-l-l-l-l-w"),
        (0, True, "------"),
    ],
)
def test_ten_saves_of_a_local_disk_come_in_the_time_of_one(
    program: Program, every: int, local: bool, expected: str
):
    assert _places(_saver(program, local, save_every=every), len(expected)) == expected


@pytest.mark.parametrize(
    ("local", "keep_every", "expected"),
    [(False, None, "--w" * 4), (True, None, "l" * 9 + "wll"), (False, 5, "--w-ww--ww-w")],
)
def test_by_time_a_save_is_due_when_the_time_has_come(
    program: Program,
    local: bool,
    keep_every: int | None,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
):
    """And at the steps that are kept for good, which it would seldom come to otherwise."""
    changes = {"save_every": 0, "save_seconds": 30, "keep_every": keep_every}
    saver, now = _saver(program, local, **changes), [0.0]
    monkeypatch.setattr(timer.time, "monotonic", lambda: now[0])
    found = ""
    with saver.timer:
        for step in range(1, 13):
            now[0] += 10.0
            found += (saver.due(step) or "-")[0]
    assert found == expected


@pytest.fixture(scope="module")
def stopped(
    experiment: Experiment, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Experiment, Path, Path]:
    """A run of 25 steps, saved at 20 and locally at 22 and 24, and one without local saves."""
    root = tmp_path_factory.mktemp("local")
    plain = replace(
        experiment,
        train=replace(experiment.train, duration="25 steps"),
        eval=replace(experiment.eval, every=0, max_examples=2),
        checkpoint=replace(experiment.checkpoint, every=20),
    )
    assert train_experiment(resolve(plain), root / "plain")
    local = replace(plain, checkpoint=replace(plain.checkpoint, local_dir=str(root / "ssd")))
    assert train_experiment(resolve(local), root / "run")
    assert Checkpoints(root / "run" / "checkpoints", read_only=True).steps() == [20, 25]
    assert LocalCheckpoints(root / "ssd", root / "run").steps() == [22, 24]
    return local, root / "run", root / "plain"


def test_a_start_goes_on_from_the_newest_checkpoint_of_either_place(
    stopped: tuple[Experiment, Path, Path], capsys: pytest.CaptureFixture[str]
):
    """And from the next older one where it is damaged; the result is the same, bit for bit."""
    local, run, plain = stopped
    ssd = next((run.parent / "ssd").rglob("24")).parent
    for damaged, first in (((), 24), ((24,), 22), ((22, 24), 20)):
        Checkpoints(run / "checkpoints")  # which has step 25
        for step in damaged:
            path = ssd / str(step) / "arrays.bin"
            path.write_bytes(path.read_bytes()[:-100] + bytes(100))
        (run / "checkpoints" / "25").rename(run.parent / f"25-{first}")
        assert train_experiment(resolve(local), run)
        error = capsys.readouterr().err
        assert f"going on after step {first}" in error
        assert error.count("is left out (a part of") == len(damaged)
        lines = [x for x in read_lines(run / "metrics.jsonl") if "train/loss" in x]
        assert [line["step"] for line in lines] == list(range(1, 26))
        _assert_same(run, plain)


def test_local_checkpoints_of_a_deleted_run_are_left_alone(
    stopped: tuple[Experiment, Path, Path], capsys: pytest.CaptureFixture[str]
):
    """A new run in its place begins at step 0, and so does one that needs no local checkpoints."""
    local, run, plain = stopped
    shutil.rmtree(run)
    capsys.readouterr()
    assert train_experiment(resolve(local), run)
    assert "starting at step 0" in capsys.readouterr().err
    assert len([x for x in read_lines(run / "metrics.jsonl") if "train/loss" in x]) == 25
    _assert_same(run, plain)


def _assert_same(run: Path, plain: Path) -> None:
    for name, array in Checkpoints(plain / "checkpoints", read_only=True).stream(25).items():
        found = Checkpoints(run / "checkpoints", read_only=True).stream(25)[name]
        for a, b in zip(array.parts(), found.parts(), strict=True):
            np.testing.assert_array_equal(a, b)
