"""The list of faults, a few of them made, and results that add up."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _faults(*flags: object) -> subprocess.CompletedProcess[str]:
    """Runs the program as `make faults` does, in a process that has not imported JAX."""
    own = ("JAX_NUM_CPU_DEVICES", "JAX_COMPILATION_CACHE_DIR", "COLUMNS")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    command = [sys.executable, "-m", "tests.faults", *map(str, flags)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_results_of_several_sittings_add_up(tmp_path: Path):
    row = {"count": 3, "recovered": 2, "steps_lost": 0, "steps_redone": 5}
    result = {
        "count": 3,
        "recovered": 2,
        "kinds": {"a bit is flipped": row},
        "steps_lost": 0,
        "differing_bits": 4,
        "failures": [{"kind": "a bit is flipped", "again": "make faults ARGS=1"}],
        "not_here": [],
        "seconds_to_step": [1.5],
        "sittings": [{"seed": 1}],
    }
    path = tmp_path / "1.json"
    path.write_text(json.dumps(result))
    output = tmp_path / "all.json"
    done = _faults("--merge", path, path, f"--output={output}")
    assert done.returncode == 1  # two have failed
    assert "a bit is flipped      6          4           0            10" in done.stdout
    total = json.loads(output.read_text())
    assert (total["count"], total["recovered"], total["differing_bits"]) == (6, 4, 8)
    assert total["kinds"]["a bit is flipped"]["count"] == 6
    assert len(total["failures"]) == len(total["sittings"]) == 2


@pytest.mark.slow
def test_processes_that_are_stopped_as_a_whole_end_the_others_with_their_stacks(tmp_path: Path):
    """Six of two and four processes, drawn so that the first one and others are stopped."""
    output = tmp_path / "faults.json"
    done = _faults("--kind=a process stands still", "--count=6", "--seed=5", f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert json.loads(output.read_text())["recovered"] == 6


@pytest.mark.slow
def test_a_fault_of_each_of_a_dozen_kinds_ends_as_it_must(tmp_path: Path):
    output = tmp_path / "faults.json"
    done = _faults("--count=12", "--seed=3", f"--output={output}")
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert result["count"] + len(result["not_here"]) == 12
    assert result["recovered"] == result["count"]
    assert result["steps_lost"] == result["differing_bits"] == 0
