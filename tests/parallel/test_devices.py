from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxpretrain.parallel.devices import memory_in_use, peak_flops


@pytest.mark.parametrize(
    ("device_kind", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA B200", 2250),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU7x", 1153.5),
    ],
)
def test_peak_of_one_device(device_kind, teraflops):
    assert peak_flops(device_kind, jnp.bfloat16) == teraflops * 1e12


@pytest.mark.parametrize(
    "device_kind",
    ["cpu", "", "NVIDIA H100", "NVIDIA H200 MIG 1g.18gb", "NVIDIA GeForce RTX 4090 Laptop GPU"],
)
def test_an_unknown_device_has_no_peak(device_kind):
    assert peak_flops(device_kind, jnp.bfloat16) is None


def test_the_peak_is_that_of_bfloat16_alone():
    assert peak_flops("NVIDIA H200", "bfloat16") == 989.5e12
    assert peak_flops("NVIDIA H200", jnp.float32) is None


def test_memory_of_a_device_that_keeps_account():
    stats = {"bytes_in_use": 1, "peak_bytes_in_use": 2, "bytes_limit": 3, "num_allocs": 4}
    device: Any = SimpleNamespace(memory_stats=lambda: stats)
    assert memory_in_use(device) == {"bytes_in_use": 1, "peak_bytes_in_use": 2, "bytes_limit": 3}


def test_memory_of_the_cpu_is_unknown():
    assert memory_in_use(jax.devices("cpu")[0]) is None


def test_memory_of_a_backend_without_the_call_is_unknown():
    def unimplemented():
        raise jax.errors.JaxRuntimeError("UNIMPLEMENTED")

    device: Any = SimpleNamespace(memory_stats=unimplemented)
    assert memory_in_use(device) is None
