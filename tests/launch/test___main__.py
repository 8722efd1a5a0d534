from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.launch.__main__ import ENGINES, main, make_parser

TRAINING = ["--", "--config=olmo_nano", "--workdir=/shared/nano"]


def test_the_script_of_a_command_is_printed(capsys: pytest.CaptureFixture[str]):
    assert main(["slurm", "--nodes=2", *TRAINING]) == 0
    assert "#SBATCH --nodes=2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "name an engine: slurm, gke, tpu-vm, local"),
        (["slurm", *TRAINING[1:]], "write -- before --config=olmo_nano: the flags of the training"),
        (["gke", "--config.seed=1"], "write -- before --config.seed=1"),
        (["slum", *TRAINING], "there is no engine 'slum'. Did you mean 'slurm'?"),
        (["slurm", "--node=2", *TRAINING], "unknown flag --node. Did you mean --nodes?"),
        (["slurm", "--nodes=2"], "write -- and, behind it, the flags of the training command"),
        (["slurm", "--image=i", *TRAINING], "--image is a flag of gke, not of slurm"),
        (["local", "--nodes=2", *TRAINING], "--nodes is a flag of slurm, not of local"),
        (["slurm", *TRAINING, "--wrkdir=a"], "unknown flag --wrkdir. Did you mean --workdir?"),
        (["newest"], "--workdir is required"),
    ],
)
def test_a_bad_command_line_is_one_line(argv: list[str], message: str):
    with pytest.raises(InputError) as error:
        main(argv)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_newest_step_is_printed_for_scripts(tmp_path: Path, capsys):
    assert main(["newest", f"--workdir={tmp_path}"]) == 0
    (tmp_path / "checkpoints" / "30").mkdir(parents=True)
    assert main(["newest", f"--workdir={tmp_path}"]) == 0
    assert capsys.readouterr().out == "-1\n30\n"


def test_every_flag_is_of_some_engine():
    given = {a.dest for a in make_parser()._actions} - {"help", "version", "engine"}
    assert given == set().union(*ENGINES.values())
