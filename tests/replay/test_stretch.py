import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.parallel.mesh import Mesh
from jaxpretrain.replay.proof import judge, sum_up
from jaxpretrain.replay.stretch import fitting_stages, open_stretch
from jaxpretrain.train.experiment import Experiment, resolve
from tests.replay.conftest import contents


def test_a_hundred_stretches_are_the_same_bit_for_bit_and_the_run_stays_as_it_is(run: Path):
    """Over a resume, two changes of the stage and the end of an epoch."""
    before, random = contents(run), np.random.default_rng(0)
    whole = open_stretch(run, "1-16", 0)
    assert sorted(whole.recorded) == [*range(1, 17)] == sorted(whole.signals)
    for number in range(100):
        start = 4 * int(random.integers(0, 4))
        first, last = sorted(random.integers(start + 1, 17, size=2).tolist())
        one = replace(whole, start=start, first=first, last=last)
        if number < 6:  # as the command opens it; the others share its programs
            one = open_stretch(run, f"{first}-{last}", start)
        verdicts = judge(one, [*one.run(one.restore())])
        assert len(verdicts) == last - start
        assert {v.state for v in verdicts} == {"identical"}, sum_up(verdicts)
    assert contents(run) == before


def test_it_says_how_many_steps_it_takes_and_what_is_not_the_runs(run: Path, tmp_path: Path):
    stretch = open_stretch(run, "7-10")
    assert (stretch.start, stretch.num_steps, stretch.before["step"]) == (4, 6, 4)
    way, devices = stretch.describe()
    assert way.startswith("6 steps from checkpoint 4 to step 10; the run took ")
    assert devices == "devices: 8 x cpu as replica 1 x fsdp 8 x tensor 1, 1 process"
    other = shutil.copytree(run, tmp_path / "run")
    path = other / "experiment.json"
    path.write_text(path.read_text().replace('"8 x cpu"', '"64 x TPU v9"'))
    note, *_ = open_stretch(other, "7-10").describe()
    assert note.startswith("not what made step 7: ") and "devices was 64 x TPU v9" in note


def test_another_mesh_gives_the_same_steps_but_for_rounding(run: Path):
    stretch = open_stretch(run, "9-10")
    stages, notes = fitting_stages(stretch.experiment, jax.devices()[:2])
    assert notes == []
    here = replace(stretch, stages=stages)
    verdicts = judge(here, [*here.run(here.restore())])
    assert {v.state for v in verdicts} == {"equal to rounding"}, verdicts
    assert 0 < max(v.size for v in verdicts) < 1e-5
    assert sum_up(verdicts).startswith("equal to rounding: at most ")


def test_as_many_devices_take_part_as_divide_the_batches(staged: Experiment):
    own = resolve(replace(staged, mesh=Mesh(fsdp=16)))
    stages, (note,) = fitting_stages(own, jax.devices()[:3])
    assert stages.program.layout.num_data == 2
    assert note.startswith("another mesh than the run's: mesh (replica=1, fsdp=16, tensor=1) needs")


@pytest.mark.parametrize(
    ("steps", "start", "line"),
    [
        ("17", None, "--steps=17: the run in .* has got to step 16"),
        ("0-3", None, "--steps=0-3: steps count from 1"),
        ("9-7", None, "--steps=9-7: runs backwards"),
        ("x", None, "--steps=x: write START-END"),
        ("3-9", 9, "--from=9: must lie before the steps"),
        ("9-10", 7, "--from=7: is not kept; the checkpoints are 4, 8, 12, 16"),
        ("2-3", None, "no checkpoint before step 2 is kept; the checkpoints are 4, 8, .*--from=0"),
    ],
)
def test_stretches_that_there_are_not_are_one_line(
    run: Path, steps: str, start: int | None, line: str
):
    with pytest.raises(InputError, match=line) as caught:
        open_stretch(run, steps, start)
    assert "\n" not in str(caught.value)


def test_runs_that_cannot_be_replayed_are_one_line(run: Path, tmp_path: Path):
    with pytest.raises(InputError, match="is no run: it has no experiment.json"):
        open_stretch(tmp_path, "1-2")
    other = shutil.copytree(run, tmp_path / "run")
    with (other / "metrics.jsonl").open() as file:
        lines = [line for line in file if '"step": 9' not in line and '"step": 10' not in line]
    (other / "metrics.jsonl").write_text("".join(lines))
    with pytest.raises(InputError, match=r"no losses of the steps 9 to 10, .* every 1 steps"):
        open_stretch(other, "9-10")
    damaged = next((other / "checkpoints" / "8" / "state").rglob("d/*"))
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    stretch = open_stretch(other, "11-12")
    with pytest.raises(InputError, match=r"checkpoint 8 is damaged \(.*--from=STEP takes another"):
        stretch.restore()
    assert (other / "checkpoints" / "8").exists()  # not moved: the folder is only read


def test_other_data_than_the_runs_is_refused(run: Path, tmp_path: Path):
    other = shutil.copytree(run, tmp_path / "run")
    path = other / "experiment.json"
    text = path.read_text()
    root = next(line for line in text.splitlines() if '"root"' in line).split('"')[3]
    copy = shutil.copytree(root, tmp_path / "data")
    path.write_text(text.replace(root, str(copy)))
    open_stretch(other, "9-10")
    (copy / "train" / "shard5.npy").unlink()
    with pytest.raises(
        InputError, match="the data is not that of this run: it holds .*replay needs"
    ):
        open_stretch(other, "9-10")
    shutil.rmtree(copy)
    with pytest.raises(InputError, match="no such directory"):
        open_stretch(other, "9-10")
