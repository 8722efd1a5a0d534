from pathlib import Path

import pytest
import yaml

from jaxpretrain.config.errors import InputError
from jaxpretrain.launch import engines
from jaxpretrain.launch.engines import launch
from tests.launch.conftest import flags_of

TRAINING = ["--config=olmo_nano", "--workdir=/shared/nano"]


@pytest.mark.parametrize(
    ("engine", "flags", "start"),
    [
        ("slurm", ["--nodes=2"], "#!/bin/bash\n#SBATCH --job-name=nano\n#SBATCH --nodes=2\n"),
        ("gke", ["--image=i", "--accelerator=h100:8"], "apiVersion: jobset.x-k8s.io/v1alpha2\n"),
        ("tpu-vm", ["--zone=z", "--accelerator=tpu-v6e:2x4"], "#!/bin/bash\nset -euo pipefail\n"),
    ],
)
def test_each_engine_prints_what_it_gets(engine: str, flags: list[str], start: str, capsys):
    assert launch(flags_of(engine, *flags), TRAINING) == 0
    assert capsys.readouterr().out.startswith(start)


@pytest.mark.parametrize(
    ("engine", "flags", "message"),
    [
        ("slurm", ["--nodes=0", "--gpus_per_node=8"], "--nodes=0: must be positive"),
        ("slurm", ["--nodes=3", "--gpus_per_node=8"], "does not divide over 24"),
        ("gke", ["--image=i", "--accelerator=h100:3x8"], "does not divide over 24"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(engine: str, flags: list[str], message: str):
    with pytest.raises(InputError, match=message):
        launch(flags_of(engine, *flags), TRAINING)


@pytest.mark.parametrize(
    ("engine", "flags"),
    [
        ("gke", ["--image=i", "--accelerator=h100:8"]),
        ("tpu-vm", ["--zone=z", "--accelerator=tpu-v6e:2x4"]),
    ],
)
def test_a_folder_of_one_machine_is_refused_where_restarts_lose_it(engine: str, flags: list[str]):
    for workdir in ("/shared/nano", "gs://bucket/nano"):
        given = ["--config=olmo_nano", f"--workdir={workdir}"]
        assert launch(flags_of(engine, *flags), given) == 0
    with pytest.raises(InputError, match=f"--workdir=runs/nano: on {engine} this is a folder of"):
        launch(flags_of(engine, *flags), ["--config=olmo_nano", "--workdir=runs/nano"])
    assert launch(flags_of("slurm"), ["--config=olmo_nano", "--workdir=runs/nano"]) == 0


def test_with_submit_the_client_gets_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments; cat > {tmp_path}/got\n')
    kubectl.chmod(0o755)
    flags = flags_of("gke", "--image=i", "--accelerator=h100:8", "--submit")
    assert launch(flags, TRAINING) == 0
    assert (tmp_path / "arguments").read_text() == "create -f -\n"
    assert yaml.safe_load((tmp_path / "got").read_text())["metadata"]["name"] == "nano"


@pytest.mark.parametrize(
    ("engine", "client"), [("slurm", "sbatch"), ("gke", "kubectl"), ("tpu-vm", "gcloud")]
)
def test_submit_without_the_client_is_one_line(engine, client, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    given = {
        "slurm": [],
        "gke": ["--image=i", "--accelerator=h100:8"],
        "tpu-vm": ["--zone=z", "--accelerator=tpu-v6e:2x4"],
    }
    with pytest.raises(InputError, match=f"--submit needs {client}, which is not on this machine"):
        launch(flags_of(engine, *given[engine], "--submit"), TRAINING)


def test_local_runs_what_was_checked(monkeypatch: pytest.MonkeyPatch):
    seen = {}

    def run(training, **options):
        seen.update(options, flags=training.flags)
        return 75

    monkeypatch.setattr(engines, "run_local", run)
    flags = flags_of("local", "--processes=2", "--max_restarts=5")
    assert launch(flags, TRAINING) == 75
    expected = {"num_processes": 2, "max_restarts": 5, "once": False, "flags": tuple(TRAINING)}
    assert seen == expected
    with pytest.raises(InputError, match="--processes=0: must be positive"):
        launch(flags_of("local", "--processes=0"), TRAINING)
    with pytest.raises(InputError, match="--process_id: leave it out"):
        launch(flags, [*TRAINING, "--process_id=1"])
