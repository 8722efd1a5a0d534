"""The planning command, for machines that need no compiler or are at hand."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxpretrain.plan import main
from tests.planning.conftest import TINY


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], run_command: Any) -> Any:
    """Runs the command in this process; gives its exit code and what it printed."""

    def call(*flags: str) -> tuple[Any, str, str]:
        capsys.readouterr()
        return run_command(main, *flags)

    return call


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.py"
    path.write_text(TINY.format(hardware="cpu:1", d_ff=64))
    return path


def test_the_devices_at_hand_are_planned_for_by_compiling(command: Any, config: Path):
    flags = ["--config.model.dtype=float32", "--search=microbatch_size", "--json"]
    code, output, error = command(f"--config={config}", "--target=local", *flags)
    assert code == 0, error
    answer = json.loads(output)
    assert answer["source"] == "compiled"
    assert answer["num_devices"] == 8
    assert answer["fits"] is True
    assert answer["max_microbatch_size"] == 2
    assert answer["overrides"] == []
    assert "compiled microbatch of the whole share, remat full, mesh 1 x 8 x 1: " in error
    assert "as configured it fits" in error
    assert "recommended: the config as it stands" in error


def test_without_a_compiler_the_answer_is_an_estimate_and_says_so(
    command: Any, config: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("jaxpretrain.planning.machines.find_spec", lambda name: None)
    monkeypatch.setattr("jaxpretrain.plan.prepare_environment", lambda target: None)
    flags = [f"--config={config}", "--target=h100-80gb:8", "--price=2.5"]
    code, output, error = command(*flags)
    assert code == 0, error
    assert "memory is analytic" in output
    assert "pip install 'jax[cuda13]'" in error
    code, output, _ = command(*flags, "--json")
    answer = json.loads(output)
    assert (answer["source"], answer["fits"]) == ("analytic", True)
    assert answer["cost"] == pytest.approx(2.5 * answer["device_hours"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target=a100:8"], "Did you mean 'a100-40gb' or 'a100-80gb'?"),
        (["--target=h100-80gb:11"], "so 11 is no number of them"),
        (
            ["--target=local", "--config.mesh.tensor=3"],
            "needs 3 devices, or a multiple of that, and there are 8",
        ),
        (["--target=local", "--config.train.batch_size=3"], "batch_size=3 does not divide"),
        (["--target=local", "--config.train.microbatch_size=5"], "microbatch_size=5"),
        (["--target=local", "--search=remat", "--config.model.remat=dots"], "--search=remat, but"),
        (["--target=local", "--search=colour"], "--search=colour: known: microbatch_size"),
        (["--target=local", "--price=-1"], "--price=-1: must be positive"),
        (["--target=local", "--targets=x"], "unknown flag --targets"),
        ([], "--config and --target are required"),
        (["--check", "x.py"], "--check takes configs as they are"),
    ],
)
def test_bad_input_is_one_line(command: Any, config: Path, flags: list[str], message: str):
    code, output, error = command(f"--config={config}", *flags)
    assert (code, output) == (2, "")
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_the_flags_are_read_without_jax():
    code = "import sys, jaxpretrain.plan; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_check_goes_through_the_command(command: Any, tmp_path: Path):
    path = tmp_path / "silent.py"
    path.write_text(TINY.format(hardware="as it comes", d_ff=64))
    assert command("--check", str(path)) == (0, f"{path}: states no machine\n", "")
