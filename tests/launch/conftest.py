"""Flags of launches, as their parser gives them, and the checkers of scripts."""

import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import pytest

from jaxpretrain.launch.__main__ import make_parser
from jaxpretrain.launch.training import Training, check_training


def flags_of(engine: str, *flags: str) -> Namespace:
    """The flags of a launch on an engine."""
    return make_parser().parse_args([engine, *flags])


def training(name: str = "nano", *flags: str) -> Training:
    """A training in a folder of that name."""
    given = ["--config=olmo_nano", f"--workdir=/shared/it's {name}", *flags]
    return check_training(given)


def check_script(text: str) -> None:
    """Fails where shellcheck or bash find a fault in a script."""
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    program = shutil.which("shellcheck") or str(Path(sys.executable).with_name("shellcheck"))
    if not Path(program).exists():
        pytest.skip("shellcheck is not installed")
    command: Sequence[str] = [program, "--severity=info", "-"]
    done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout
