"""The plan command after its flags: what is printed on the way, and what configs state."""

from argparse import Namespace
from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.planning import console
from tests.planning.conftest import TINY

FLAGS = {"memory_gib": None, "max_seconds": 150.0, "num_workers": None, "price": None}


def write(path: Path, hardware: str, d_ff: int = 64) -> Path:
    path.write_text(TINY.format(hardware=hardware, d_ff=d_ff))
    return path


def test_configs_are_checked_on_the_hardware_that_they_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """As continuous integration would: the code says whether all fit."""
    small = write(tmp_path / "small.py", "h100-80gb:8")
    huge = write(tmp_path / "huge.py", "a100-40gb:1", d_ff=16_000_000)
    silent = write(tmp_path / "silent.py", "as it comes")

    assert console.check_configs([small, silent]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{small} on h100-80gb:8: fits, ")
    assert lines[1] == f"{silent}: states no machine"
    assert console.check_configs([huge]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{huge} on a100-40gb:1: DOES NOT FIT, ")


@pytest.mark.parametrize(
    ("hardware", "target"),
    [
        ("h100:8", "h100-80gb:8"),
        ("tpu-v5p:4x4x4 and more", "tpu-v5p:4x4x4"),
        ("abacus:8", None),
        ("two cores", None),
    ],
)
def test_a_docstring_states_a_machine(tmp_path: Path, hardware: str, target: str | None):
    assert console._stated_target(write(tmp_path / "tiny.py", hardware)) == target


def test_a_file_that_is_no_python_is_one_line(tmp_path: Path):
    (tmp_path / "broken.py").write_text("def")
    with pytest.raises(InputError, match=r"--check .*broken\.py: "):
        console.check_configs([tmp_path / "broken.py"])


def test_progress_goes_to_standard_error_and_the_answer_comes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = str(write(tmp_path / "tiny.py", "local"))
    dtype = [("model.dtype", "float32"), ("train.microbatch_size", "2")]
    flags = Namespace(config=config, target="local", search="none", **FLAGS)
    table, document = console.plan_config(flags, dtype)
    assert document["fits"] is document["fits_as_configured"] is True
    assert table.endswith("recommended: the config as it stands")
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith("compiled microbatch 2, remat full, mesh 1 x 8 x 1: ")
    assert "\nas configured it fits: " in error
    # The limit of the flag is the limit of the plan, and nothing is searched.
    flags.memory_gib = 1e-5
    table, document = console.plan_config(flags, dtype)
    assert document["fits"] is False
    assert document["memory_limit_bytes"] == int(1e-5 * 2**30)
    assert "as configured it does not fit" in capsys.readouterr().err
