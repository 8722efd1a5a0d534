from dataclasses import replace

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.laws.sizes import configured, size_of
from tests.sweeps.tiny import write_config


def test_the_embedding_is_not_counted_and_all_steps_are(tmp_path):
    size = size_of(configured(str(write_config(tmp_path))))
    head, layer = 16 * 64, 4 * 16 * 16 + 3 * 16 * 32
    assert size.parameters == head + layer
    assert size.tokens == 4 * 8 * 16


def test_kernels_that_are_not_here_do_not_matter(tmp_path):
    experiment = configured(str(write_config(tmp_path)))
    other = replace(experiment, model=replace(experiment.model, attention="splash"))
    assert size_of(other) == size_of(experiment)


def test_images_have_no_tokens():
    with pytest.raises(InputError, match="are about tokens, and this model reads images"):
        size_of(configured("sapiens_nano"))
