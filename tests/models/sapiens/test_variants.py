import math
from dataclasses import replace

import jax
import pytest

from jaxpretrain.models.sapiens.model import VitMae
from jaxpretrain.models.sapiens.variants import SAPIENS_SIZES

PUBLISHED = ("sapiens_0_3b", "sapiens_0_6b", "sapiens_1b", "sapiens_2b")


def build_published(config: VitMae):
    return config.build({"images": ((1024, 1024, 3), "uint8")}, platform="cpu")


def num_params(config: VitMae) -> int:
    shapes = jax.eval_shape(build_published(config).init, jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("name", "card"), zip(PUBLISHED, (0.336, 0.664, 1.169, 2.163), strict=True)
)
def test_model_cards_count_encoder_decoder_and_tables_of_positions(name, card):
    config = SAPIENS_SIZES[name]
    stored = num_params(replace(config, positions="stored"))
    assert round(stored / 1e9, 3) == card
    assert stored - num_params(config) == 4097 * (config.d_model + 512)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_in_closed_form(name):
    c = SAPIENS_SIZES[name]

    def tower(d: int, num_layers: int) -> int:
        return num_layers * (12 * d * d + 13 * d) + 2 * d  # weights; biases and norms; last norm

    encoder = 769 * c.d_model + c.d_model + tower(c.d_model, c.num_layers)
    decoder = 512 * c.d_model + 512 + 512 + tower(512, 8) + 513 * 768
    assert num_params(c) == encoder + decoder


@pytest.mark.parametrize(
    ("name", "size", "layers", "heads", "head_dim"),
    [
        ("sapiens_0_3b", 1024, 24, 16, 64),
        ("sapiens_0_6b", 1280, 32, 16, 80),
        ("sapiens_1b", 1536, 40, 24, 64),
        ("sapiens_2b", 1920, 48, 32, 60),
    ],
)
def test_published_sizes(name, size, layers, heads, head_dim):
    c = SAPIENS_SIZES[name]
    assert (c.d_model, c.num_layers, c.num_heads) == (size, layers, heads)
    assert c.d_model // c.num_heads == head_dim and c.d_ff == 4 * size
    assert (c.decoder_d_model, c.decoder_num_layers, c.decoder_num_heads) == (512, 8, 16)
    assert (c.patch_size, c.mask_ratio, c.normalize_patches) == (16, 0.75, True)
    assert (build_published(c).num_patches, build_published(c).num_seen) == (4096, 1024)


@pytest.mark.parametrize(
    ("name", "teraflops"), zip(PUBLISHED, (3.64, 5.87, 9.23, 15.72), strict=True)
)
def test_flops_of_an_image(name, teraflops):
    """Six times the multiplications and additions of the forward pass; attention is full."""
    model = build_published(SAPIENS_SIZES[name])
    assert round(model.flops_per_example(causal=False) / 1e12, 2) == teraflops
    assert model.flops_per_example(causal=True) == model.flops_per_example(causal=False)


def test_every_variant_is_a_model():
    sizes = {name: num_params(config) for name, config in SAPIENS_SIZES.items()}
    assert len(set(sizes.values())) == len(SAPIENS_SIZES)
    assert sizes["mae_nano"] < 2_000_000
