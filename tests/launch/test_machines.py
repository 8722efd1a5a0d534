import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.launch.machines import nodes_of, num_devices_of, read_accelerator
from tests.launch.conftest import flags_of

CHIPS = ("h100-80gb", "tpu-v5p", "tpu-v5e")


@pytest.mark.parametrize(
    ("engine", "flags", "num_devices"),
    [
        ("slurm", ["--nodes=3", "--gpus_per_node=8"], 24),
        ("slurm", ["--nodes=3"], None),
        ("gke", ["--accelerator=h100-80gb:3x4"], 12),
        ("tpu-vm", ["--accelerator=2xtpu-v5p:2x2x2"], 16),
        ("tpu-vm", [], None),
    ],
)
def test_the_devices_of_a_run_are_counted_where_its_flags_tell(engine, flags, num_devices):
    assert num_devices_of(flags_of(engine, *flags)) == num_devices


@pytest.mark.parametrize(
    ("accelerator", "nodes"),
    [
        ("h100-80gb:4x8", (4, 8)),
        ("h100-80gb:3", (1, 3)),
        ("tpu-v5p:4x4x4", (16, 4)),
        ("2xtpu-v5p:2x2x1", (1, 4)),
        ("tpu-v5e:1x1", (1, 1)),
    ],
)
def test_nodes_are_those_of_a_slice_or_of_all_gpus(accelerator: str, nodes: tuple[int, int]):
    flags = flags_of("gke", f"--accelerator={accelerator}")
    assert nodes_of(read_accelerator(flags, "the cloud", CHIPS)) == nodes


@pytest.mark.parametrize(
    ("accelerator", "message"),
    [
        ("h200:8", "--accelerator=h200:8: the cloud has h100-80gb, tpu-v5p, tpu-v5e"),
        ("cpu:8", "--accelerator=cpu:8: the cloud has h100-80gb"),
        ("tpu-v5p:3x3x3", "--accelerator=tpu-v5p:3x3x3: 27 chips are not whole hosts of 4"),
        ("tpu-v5p:4x4", "--accelerator=tpu-v5p:4x4: its slices have shapes as"),
    ],
)
def test_what_is_no_machine_of_a_cloud_is_one_line(accelerator: str, message: str):
    with pytest.raises(InputError) as error:
        read_accelerator(flags_of("gke", f"--accelerator={accelerator}"), "the cloud", CHIPS)
    assert str(error.value).startswith(message)
