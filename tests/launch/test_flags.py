import pytest

from jaxpretrain.config.command import Parser
from jaxpretrain.config.errors import InputError
from jaxpretrain.launch.flags import add_runs_flags, require_runs_flags, require_sensible
from tests.launch.conftest import flags_of


def test_numbers_in_range_pass():
    require_sensible(flags_of("slurm", "--nodes=2", "--max_restarts=0", "--notice=1"))


@pytest.mark.parametrize("flag", ["--nodes=0", "--processes_per_node=0", "--notice=-5"])
def test_numbers_out_of_range_are_named(flag: str):
    with pytest.raises(InputError, match=f"{flag}: must be positive"):
        require_sensible(flags_of("slurm", flag))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--jobs=0"], "--jobs=0: must be positive"),
        (["--submit"], "--submit: to what"),
        (["--launcher=slurm", "--json"], "--json: --launcher prints"),
    ],
)
def test_flags_of_many_runs_must_fit_together(given: list[str], message: str):
    parser = Parser()
    add_runs_flags(parser)
    require_runs_flags(parser.parse_args(["--launcher=slurm", "--submit", "--jobs=2"]))
    with pytest.raises(InputError, match=message):
        require_runs_flags(parser.parse_args(given))
