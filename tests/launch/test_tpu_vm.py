import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.devices.chips import CHIPS
from jaxpretrain.launch.tpu_vm import _TYPES, write_script
from tests.launch.conftest import check_script, flags_of, training


def script(*flags: str) -> str:
    return write_script(training(), flags_of("tpu-vm", *flags))


def test_several_slices_are_nodes_of_one_resource():
    text = script("--zone=z", "--accelerator=2xtpu-v5p:4x4x4", "--spot", "--max_restarts=5")
    for part in ("--accelerator-type=v5p-128", "--node-count=2", "--spot", "--max_restarts=5 -- "):
        assert part in text
    check_script(text)


def test_one_slice_is_a_node():
    text = script("--zone=z", "--accelerator=tpu-v5e:4x4", "--runtime_version=r", "--install=true")
    for part in (
        "--accelerator-type=v5litepod-16",
        "--runtime-version=r",
        "--node-id=",
        "\ntrue ||",
    ):
        assert part in text
    assert "--node-count" not in text and "--spot" not in text
    check_script(text)


def test_a_host_that_starts_anew_is_the_same_job_for_the_lease_of_a_bucket():
    assert "JAXPRETRAIN_JOB='TPU VMs it-s-nano in z'\n" in script(
        "--zone=z", "--accelerator=tpu-v5e:4x4"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--zone=z"], "--zone and --accelerator are required"),
        (["--zone=z", "--accelerator=h100:8"], "service has tpu-v5e, tpu-v5p, tpu-v6e"),
        (["--zone=z", "--accelerator=tpu-v5p:3x3x3"], "27 chips are not whole hosts of 4"),
        (["--zone=z", "--accelerator=tpu-v5p:4"], "--accelerator=tpu-v5p:4: its slices"),
    ],
)
def test_bad_flags_are_one_line(flags: list[str], message: str):
    with pytest.raises(InputError, match=message):
        script(*flags)


def test_every_tpu_of_the_table_has_a_type():
    assert _TYPES.keys() == {name for name, chip in CHIPS.items() if chip.platform == "tpu"}
