"""The reporter of a run, as the run opens it."""

import json
import re
from pathlib import Path

import jax
import pytest

from jaxpretrain.train.program import Program
from jaxpretrain.train.reporting import earlier_sessions, work_of
from jaxpretrain.train.stages import StageProgram, Stages


def test_the_work_of_a_run_is_what_its_config_says(program: Program) -> None:
    timeline = program.experiment.timeline
    work = work_of(Stages((StageProgram(0, timeline.num_steps, num_pieces=1, program=program),)))
    assert (work.unit, work.units_per_example, work.total_steps) == ("tokens", 16, 5)
    assert (work.eval_every, work.save_every, work.num_devices) == (2, 2, 1)
    count = sum(x.size for x in jax.tree.leaves(program.state.params))
    embedding = program.state.params["embed"]["embedding"]
    assert work.num_parameters == count - embedding.size > 0
    assert work.units(3) == 3 * 16 * 16
    assert work.peak_flops is None  # of a CPU
    assert 0 < work.flops_per_unit(1, True) < work.flops_per_unit(1, False)


LINES = [{"step": step, "time": 100.0 + step, "train/loss": 5.0 - step} for step in (1, 2)]


@pytest.mark.parametrize(
    ("file", "line", "problem"),
    [
        ("metrics.jsonl", {"step": 2, "tame": 1.0}, 'line 3: no "step" and "time"'),
        ("metrics.jsonl", {"step": 2, "time": 1.0, "train/loss": [1.0]}, "line 3: .*not a number"),
        ("signals.jsonl", {"step": 2, "time": 1.0, "sig~als/x": [1.0]}, "line 1: .*not a number"),
    ],
)
def test_a_damaged_line_of_earlier_sessions_is_said_and_ends_no_run(
    tmp_path: Path, file: str, line: dict[str, object], problem: str
) -> None:
    path, said = tmp_path / "metrics.jsonl", []
    assert earlier_sessions(path, said.append) is None
    path.write_text("".join(json.dumps(record) + "\n" for record in LINES))
    history = earlier_sessions(path, said.append)
    assert history is not None and history["train/loss"].values.tolist() == [4.0, 3.0]
    assert not said
    with (tmp_path / file).open("a") as lines:
        lines.write(json.dumps(line) + "\n")
    assert earlier_sessions(path, said.append) is None
    (warning,) = said
    assert re.search(problem, warning) and "remove that line" in warning
