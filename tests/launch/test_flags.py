import pytest

from jaxpretrain.config.command import Parser
from jaxpretrain.config.errors import InputError
from jaxpretrain.launch.flags import add_runs_flags, require_runs_flags, require_sensible
from tests.launch.conftest import flags_of


def test_numbers_in_range_pass():
    require_sensible(flags_of("slurm", "--nodes=2", "--max_restarts=0", "--notice=1"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--nodes=0"], "--nodes=0: must be positive"),
        (["--processes_per_node=0"], "--processes_per_node=0: must be positive"),
        (["--gpus_per_node=-1"], "--gpus_per_node=-1: must be positive"),
        (["--notice=-5"], "--notice=-5: must be positive"),
        (["--max_restarts=-1"], "--max_restarts=-1: must not be negative"),
        (
            ["--gpus_per_node=8", "--processes_per_node=3"],
            "--gpus_per_node=8 does not divide over --processes_per_node=3",
        ),
    ],
)
def test_numbers_that_make_no_sense_are_named(flags: list[str], message: str):
    with pytest.raises(InputError, match=message):
        require_sensible(flags_of("slurm", *flags))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--jobs=0"], "--jobs=0: must be positive"),
        (
            ["--submit"],
            "--submit goes with --launcher=slurm or --launcher=kubernetes",
        ),
        (["--nodes=3"], "--nodes goes with --launcher=slurm, not with local"),
        (
            ["--launcher=slurm", "--image=x"],
            "--image goes with --launcher=kubernetes, not",
        ),
        (["--launcher=kubernetes", "--jobs=3"], "--jobs goes with --launcher=local"),
        (["--launcher=slurm", "--json"], "--json: --launcher prints"),
    ],
)
def test_flags_of_many_runs_must_fit_together(given: list[str], message: str):
    parser = Parser()
    add_runs_flags(parser)
    right = ["--launcher=slurm", "--submit", "--nodes=2"]
    require_runs_flags(parser.parse_args(right), right)
    with pytest.raises(InputError, match=message):
        require_runs_flags(parser.parse_args(given), given)
