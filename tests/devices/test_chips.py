"""The table of devices."""

import jax.numpy as jnp
import pytest

from jaxpretrain.devices.chips import CHIPS, compiler_options, peak_flops


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_every_chip_has_peaks_and_ordered_rates(chip) -> None:
    assert chip.peak_flops(jnp.bfloat16) >= chip.peak_flops(jnp.float32) > 0
    assert chip.memory_bandwidth > chip.link_bandwidth > chip.network_bandwidth > 0
    assert 0 < chip.usable_bytes <= chip.memory_bytes


def test_gpus_multiply_float32_at_half_the_rate_and_tpus_at_the_whole() -> None:
    assert CHIPS["h100-80gb"].peak_flops(jnp.float32) == 989.5e12 / 2
    assert CHIPS["tpu-v5p"].peak_flops(jnp.float32) == 459e12


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


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_every_gpu_is_described_to_its_compiler(chip) -> None:
    assert (chip.cores is not None) == (chip.platform == "gpu")
    assert peak_flops(chip.device_kind, jnp.bfloat16) == chip.peak_bf16_flops


def test_a100s_hide_communication_only_when_told_to() -> None:
    hides = {"xla_gpu_enable_latency_hiding_scheduler": True}
    assert compiler_options("NVIDIA A100-SXM4-80GB") == hides
    assert compiler_options("NVIDIA A100-SXM4-40GB") == hides
    assert compiler_options("NVIDIA H200") == compiler_options("cpu") == {}
