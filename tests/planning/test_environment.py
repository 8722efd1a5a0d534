"""What JAX is told before a plan."""

import os
import subprocess
import sys

import pytest

from jaxpretrain.planning.environment import prepare_environment


def test_planning_leaves_the_accelerators_of_this_host_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "environ", {"JAX_PLATFORMS": "cuda", "XLA_FLAGS": "--a=b"})
    prepare_environment("local")
    assert os.environ == {"JAX_PLATFORMS": "cuda", "XLA_FLAGS": "--a=b"}
    prepare_environment("cpu:4")
    assert os.environ["JAX_PLATFORMS"] == "cpu"
    assert os.environ["XLA_FLAGS"] == "--a=b --xla_force_host_platform_device_count=4"
    prepare_environment("h100-80gb:8")
    assert os.environ["XLA_FLAGS"] == "--a=b --xla_force_host_platform_device_count=4"


def test_jax_is_not_there_before_it_is_told():
    code = "import sys, jaxpretrain.planning.environment; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
