from dataclasses import replace

import pytest

from jaxpretrain.config.errors import InputError
from tests.models.sapiens.conftest import TINY, build


def test_patches_that_are_seen_are_rounded_down():
    assert [replace(TINY, mask_ratio=ratio).num_seen(10) for ratio in (0.75, 0.7, 0.5)] == [2, 3, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, "cannot divide model.d_model by model.num_heads: 24 / 5"),
        ({"decoder_num_heads": 3}, "cannot divide model.decoder_d_model by"),
        ({"d_model": 18, "num_heads": 2}, "cannot divide model.d_model by 4 (positions): 18 / 4"),
        ({"patch_size": 4}, "cannot divide the images' height by model.patch_size: 6 / 4"),
        ({"patch_size": 3}, "cannot divide the images' width by model.patch_size: 8 / 3"),
        ({"patch_size": 0}, "model.patch_size=0: must be from 1 to 16777216"),
        ({"decoder_num_layers": 0}, "model.decoder_num_layers=0: must be from 1 to 1000"),
        ({"mask_ratio": 0.0}, "model.mask_ratio=0.0: must be above 0 and below 1"),
        (
            {"mask_ratio": 0.95},
            "model.mask_ratio=0.95: of 12 patches, at least one must be removed",
        ),
        ({"mask_ratio": -0.5}, "model.mask_ratio=-0.5"),
    ],
    ids=str,
)
def test_sizes_that_cannot_be_are_refused_in_one_line(change, message):
    with pytest.raises(InputError) as error:
        build(replace(TINY, **change))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
