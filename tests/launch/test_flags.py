import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.launch.flags import require_sensible
from tests.launch.conftest import flags_of


def test_numbers_in_range_pass():
    require_sensible(flags_of("slurm", "--nodes=2", "--max_restarts=0", "--notice=1"))


@pytest.mark.parametrize("flag", ["--nodes=0", "--processes_per_node=0", "--notice=-5"])
def test_numbers_out_of_range_are_named(flag: str):
    with pytest.raises(InputError, match=f"{flag}: must be positive"):
        require_sensible(flags_of("slurm", flag))
