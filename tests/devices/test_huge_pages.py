import os
import subprocess
import sys

import pytest

PROGRAM = """
import os
from jaxpretrain.devices.huge_pages import has_huge_pages, use_huge_pages
pid = os.environ.setdefault("FIRST_PID", str(os.getpid()))
use_huge_pages()
import sys
print(pid == str(os.getpid()), has_huge_pages(), sys.argv[1:])
"""


def start(environment: dict[str, str]) -> list[str]:
    """What the program prints, started with these variables."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES", "FIRST_PID")}
    command = [sys.executable, "-c", PROGRAM, "--flag=a b", "*"]
    environment = inherited | environment
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def grants_huge_pages() -> bool:
    try:
        with open("/sys/kernel/mm/transparent_hugepage/enabled") as setting:
            return "[never]" not in setting.read()
    except OSError:
        return False


@pytest.mark.skipif(not grants_huge_pages(), reason="the kernel grants no huge pages")
def test_the_program_starts_once_more_as_the_same_process_with_its_flags():
    assert start({"JAX_PLATFORMS": "cpu"}) == ["True True ['--flag=a b', '*']"]


def test_what_the_user_set_is_kept():
    assert start({"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": ""}) == [
        "True False ['--flag=a b', '*']"
    ]


def test_nothing_happens_beside_an_accelerator():
    assert start({"JAX_PLATFORMS": "cuda,cpu"}) == ["True False ['--flag=a b', '*']"]
