"""The flags of the convert command."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from jaxpretrain.convert import main


@pytest.fixture
def command(run_command: Any) -> Any:
    return partial(run_command, main)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give either --input, or --merge"),
        (["--input=a", "--merge=a,b"], "give either --input, or --merge"),
        (["--merge=a"], "--merge needs two checkpoints or more"),
        (["--from=olmo", "--merge=a,b"], "--merge takes checkpoints as they are"),
        (["--input=a", "--dtype=bfloat16"], "--dtype goes with --to=hf"),
        (["--from=hf", "--weights=average", "--input=a"], "--weights goes with checkpoints"),
        (["--input=nowhere"], "nowhere: no such folder"),
        (["--form=hf"], "Did you mean --from?"),
    ],
)
def test_bad_flags_are_one_line(command: Any, tmp_path: Path, flags: list[str], message: str):
    code, output, error = command(*flags, f"--output={tmp_path / 'out'}")
    assert (code, output) == (2, "")
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "out").exists()


def test_the_flags_are_read_without_jax():
    code = "import sys, jaxpretrain.convert; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
