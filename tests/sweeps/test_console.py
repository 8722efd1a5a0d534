import json

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.main import main
from jaxpretrain.sweep import make_parser
from jaxpretrain.sweeps.console import run_sweep
from tests.sweeps.tiny import Ended, HereLauncher, write_config

GRID = ["--grid.model.d_ff=32,40"]


@pytest.fixture
def config(tmp_path):
    return f"--config={write_config(tmp_path)}"


def swept(*flags, items=GRID, gpus=()):
    return run_sweep(make_parser().parse_args(flags), items, {}, gpus)


class Codes(HereLauncher):
    """Ends each run at once, with codes in turn."""

    def __init__(self, *codes):
        super().__init__()
        self.codes = list(codes)

    def start(self, command, log):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("error: no luck\n")
        self.commands.append(command)
        return Ended(self.codes.pop(0) if self.codes else 75)


def use(monkeypatch, launcher):
    monkeypatch.setattr("jaxpretrain.sweeps.console.LocalLauncher", lambda *_: launcher)
    return launcher


@pytest.mark.parametrize(("codes", "exit_code"), [((2, 75, 75, 75), 75), ((2, 3, 1, 2), 1)])
def test_runs_that_did_not_end_well_are_told(config, monkeypatch, tmp_path, codes, exit_code):
    use(monkeypatch, Codes(*codes))
    workdir = tmp_path / "sweep"
    code, document = swept(config, f"--workdir={workdir}", "--seeds=2")
    assert code == exit_code
    assert json.loads((workdir / "sweep.json").read_text())["planned"] == document["planned"]
    first = document["arms"][0]["runs"][0]
    assert (first["state"], first["problem"]) == ("failed", "error: no luck")
    assert "no luck" in (workdir / "report.html").read_text()


def test_gpus_are_planned_for_by_their_names(config, monkeypatch, capsys):
    monkeypatch.setattr("jaxpretrain.planning.machines.find_spec", lambda name: None)
    gpus = [(str(number), "NVIDIA H200") for number in range(4)]
    _, document = swept(config, "--plan_only", "--jobs=2", gpus=gpus)
    assert "(h200:2)" in capsys.readouterr().out
    assert document["planned"]["device_hours"] > 0
    _, document = swept(config, "--plan_only", gpus=[("0", "NVIDIA Z9")])
    assert document["planned"]["device_hours"] is None


def test_a_sweep_of_equal_time_goes_on_with_its_durations(config, monkeypatch, tmp_path):
    flags = [config, f"--workdir={tmp_path / 'sweep'}", "--seeds=2", "--equal=time"]
    launcher = use(monkeypatch, Codes())
    swept(*flags)
    swept(*flags)
    of_arm = [
        next(x for x in c if "train.duration" in x) for c in launcher.commands if "d_ff=40" in c[4]
    ]
    assert len(of_arm) == 4
    assert len(set(of_arm)) == 1


def test_a_file_says_what_is_varied(config, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from jaxpretrain.api import make_sweep\n\n\ndef get_sweep():\n"
        f"    return make_sweep({config.partition('=')[2]!r}, grid={{'model.d_ff': [32, 40]}})\n"
    )
    shared = ["--config.train.duration=6"]
    with pytest.raises(InputError, match="leave out --random=3"):
        swept(f"--sweep={path}", "--random=3", items=shared)
    _, document = swept(f"--sweep={path}", "--plan_only", "--seeds=4", items=shared)
    assert len(document["arms"][1]["runs"]) == 4
    assert document["planned"]["settings"]["d_ff=40"]["steps"] == 6
    with pytest.raises(InputError, match="leave out --grid"):
        swept(f"--sweep={path}", "--plan_only", items=GRID)


def test_an_engine_gets_the_runs_as_one_job(config, tmp_path, capsys):
    workdir = tmp_path / "sweep"
    flags = [config, f"--workdir={workdir}", "--seeds=2", "--launcher=slurm", "--nodes=2"]
    code, document = swept(*flags)
    told = capsys.readouterr()
    assert code == 0 and told.out.startswith("#!/bin/bash\n#SBATCH --job-name=sweep\n")
    assert "#SBATCH --array=0-3\n" in told.out and "4 runs: 2 arms" in told.err
    folders = [run["folder"] for arm in document["arms"] for run in arm["runs"]]
    assert all(f"workdir={workdir / folder}\n" in told.out for folder in folders)
    assert json.loads((workdir / "sweep.json").read_text()) == json.loads(json.dumps(document))


def test_kubernetes_gets_an_indexed_job(config, tmp_path, capsys):
    flags = [config, f"--workdir={tmp_path / 'sweep'}", "--launcher=kubernetes"]
    swept(*flags, "--image=me/jax", "--accelerator=h100:1", "--seeds=2")
    told = capsys.readouterr().out
    assert "kind: Job\n" in told and "completions: 4\n" in told and "--config.model.d_ff=40" in told


def test_what_an_engine_has_run_is_answered(config, monkeypatch, tmp_path):
    """The runs are trained here, by the flags that the engine got, and no launcher notes them."""
    flags = [config, f"--workdir={tmp_path / 'sweep'}", "--seeds=2"]
    seen = []
    monkeypatch.setattr("jaxpretrain.sweeps.console.deliver", lambda *_, **__: 0)
    monkeypatch.setattr(
        "jaxpretrain.sweeps.console.slurm.write_script",
        lambda name, trainings, flags: seen.extend(trainings) or "",
    )
    swept(*flags, "--launcher=slurm")
    assert [main(list(training.flags)) for training in seen] == [0] * 4
    code, document = swept(*flags, "--launcher=slurm")
    assert code == 0 and len(seen) == 4
    assert {run["state"] for arm in document["arms"] for run in arm["runs"]} == {"done"}
    assert document["answer"]
