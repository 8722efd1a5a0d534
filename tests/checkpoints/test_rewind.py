"""Going back to an older checkpoint; tests of runs go on from there."""

import json
from pathlib import Path

import pytest

from jaxpretrain.checkpoints.orbax import finished_steps
from jaxpretrain.checkpoints.rewind import read_rewinds, require_kept, rewind
from jaxpretrain.config.errors import InputError

LOGS = ("metrics.jsonl", "samples.jsonl")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder that has checkpoints and lines, as far as going back looks at them."""
    for step in (10, 20, 30):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
        (tmp_path / "checkpoints" / str(step) / "state").write_text(f"of {step}")
    lines = [json.dumps({"step": step, "a": step}) + "\n" for step in range(1, 36)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    return tmp_path


def test_what_comes_after_is_moved_and_nothing_is_lost(run: Path):
    line = rewind(run, 10, LOGS)
    folder = run / "abandoned" / "1"
    assert line == f"went back to step 10: the checkpoints of step 20, 30 are in {folder} now"
    assert finished_steps(run / "checkpoints") == [10]
    assert (folder / "20" / "state").read_text() == "of 20"
    abandoned = [json.loads(text)["step"] for text in (folder / "metrics.jsonl").open()]
    assert abandoned == list(range(11, 36))
    assert not (folder / "samples.jsonl").exists()
    (note,) = read_rewinds(run)
    assert (note.to_step, note.from_step) == (10, 35)
    (run / "metrics.jsonl").write_text('{"step": 10}\n')  # as the next start drops lines
    assert rewind(run, 10, LOGS) is None  # there is nothing after it
    (run / "checkpoints" / "20").mkdir()
    rewind(run, 10, LOGS)
    assert [(x.to_step, x.from_step) for x in read_rewinds(run)] == [(10, 35), (10, 20)]


@pytest.mark.parametrize(("step", "nearest"), [(24, 20), (26, 30), (1, 10)])
def test_a_step_that_is_not_kept_names_the_nearest(run: Path, step: int, nearest: int):
    with pytest.raises(InputError, match=f"the nearest is {nearest}; it has 10, 20, 30"):
        require_kept(run, step)
    assert not (run / "abandoned").exists()


def test_without_checkpoints_there_is_no_way_back(tmp_path: Path):
    with pytest.raises(InputError, match="has no checkpoint of that step; it has none"):
        require_kept(tmp_path, 4)


def test_lines_alone_are_kept_too(run: Path):
    assert rewind(run, 30, LOGS) == (
        f"went back to step 30: the lines up to step 35 are in {run / 'abandoned' / '1'} now"
    )
    abandoned = [json.loads(text)["step"] for text in (run / "abandoned/1/metrics.jsonl").open()]
    assert abandoned == list(range(31, 36))
    assert [(x.to_step, x.from_step) for x in read_rewinds(run)] == [(30, 35)]
    assert finished_steps(run / "checkpoints") == [10, 20, 30]
