"""Names of machines."""

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.planning.targets import next_larger, parse_target


@pytest.mark.parametrize(
    ("text", "platform", "shape", "num_devices", "num_hosts"),
    [
        ("h100-80gb:1", "gpu", (1, 1), 1, 1),
        ("h100-80gb:8", "gpu", (1, 8), 8, 1),
        ("h100-80gb:16", "gpu", (2, 8), 16, 2),
        ("a100-40gb:4x4", "gpu", (4, 4), 16, 4),
        ("tpu-v5e:16x16", "tpu", (16, 16), 256, 1),
        ("tpu-v5p:8x8x8", "tpu", (8, 8, 8), 512, 1),
        ("cpu:8", "cpu", (1, 8), 8, 1),
    ],
)
def test_a_name_says_what_the_machine_has(text, platform, shape, num_devices, num_hosts):
    target = parse_target(text)
    assert (target.platform, target.shape) == (platform, shape)
    assert (target.num_devices, target.num_hosts) == (num_devices, num_hosts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a100:8", r"a100:8: no such machine. Did you mean 'a100-40gb' or 'a100-80gb'\?"),
        ("h100-pcie:8", "h100-pcie:8: no such machine."),
        ("h100", "needs a size, as h100-80gb:8 or h100-80gb:2x8"),
        ("v5e:4x4", r"Did you mean 'tpu-v5e'\?"),
        ("h20:8", r"Did you mean 'h200'\?"),
        ("abacus:8", "no such machine. Known are local, cpu, "),
        ("h100-80gb", "needs a size, as h100-80gb:8 or h100-80gb:2x8"),
        ("h100-80gb:0", "needs a size"),
        ("h100-80gb:12", "hosts have 8 GPUs, so 12 is no number of them"),
        ("h100-80gb:2x16", "hosts have at most 8 GPUs"),
        ("h100-80gb:2x2x2", "HOSTSxGPUS"),
        ("tpu-v5p:4x4", "its slices have shapes as tpu-v5p:4x4x4"),
        ("tpu-v5e:256", "its slices have shapes as tpu-v5e:8x8"),
        ("cpu:2x4", "a number of virtual devices"),
        ("local:8", "local takes no size"),
    ],
)
def test_what_is_no_machine_is_an_error(text, message):
    with pytest.raises(InputError, match=message):
        parse_target(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("h100:8", "h100-80gb:8"),
        ("H100:2x8", "h100-80gb:2x8"),
        ("h100-sxm:8", "h100-80gb:8"),
        ("h100-sxm5-80gb:8", "h100-80gb:8"),
        ("a100-sxm4-40gb:4", "a100-40gb:4"),
        ("h200-sxm:1", "h200:1"),
    ],
)
def test_a_shorter_name_is_taken_where_one_machine_has_it(text: str, name: str):
    assert parse_target(text) == parse_target(name)


@pytest.mark.parametrize(
    ("text", "next_text"),
    [
        ("h100-80gb:4", "h100-80gb:1x8"),
        ("h100-80gb:8", "h100-80gb:2x8"),
        ("tpu-v5e:4x8", "tpu-v5e:8x8"),
    ],
)
def test_a_machine_grows_to_twice_its_size(text, next_text):
    larger = next_larger(parse_target(text))
    assert larger.name == next_text
    assert larger == parse_target(next_text)
    assert larger.num_devices == 2 * parse_target(text).num_devices
