import os
import subprocess
import sys

import jax
import pytest

from jaxpretrain.devices.startup import keep_compiled, prepare_environment

PROGRAM = """
import os
from jaxpretrain.devices.startup import has_huge_pages, use_huge_pages
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


@pytest.mark.parametrize("chosen", [None, "/elsewhere"])
def test_programs_are_kept_below_the_cache_folder_unless_the_user_says_where(
    chosen, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    changed = {}
    monkeypatch.setattr(jax.config, "update", changed.__setitem__)
    monkeypatch.setenv("JAXPRETRAIN_CACHE", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    if chosen:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", chosen)
    keep_compiled()
    folder = {} if chosen else {"jax_compilation_cache_dir": str(tmp_path / "xla")}
    assert changed == folder | {"jax_persistent_cache_min_compile_time_secs": 0.2}


def test_planning_leaves_the_accelerators_of_this_host_alone(monkeypatch: pytest.MonkeyPatch):
    given = {"JAX_PLATFORMS": "cuda", "JAX_NUM_CPU_DEVICES": "8"}
    monkeypatch.setattr(os, "environ", dict(given))
    prepare_environment("local")
    assert os.environ == given
    prepare_environment("cpu:4")
    assert os.environ["JAX_PLATFORMS"] == "cpu"
    assert os.environ["JAX_NUM_CPU_DEVICES"] == "4"
    prepare_environment("h100-80gb:8")
    assert os.environ["JAX_NUM_CPU_DEVICES"] == "4"


def test_jax_is_not_there_before_it_is_told():
    code = "import sys, jaxpretrain.devices.startup; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
