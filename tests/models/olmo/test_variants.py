import math

import jax
import pytest

from jaxpretrain.models.layers import LayerNorm, RMSNorm
from jaxpretrain.models.olmo.config import Mitchell, Normal
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.olmo.rotary import Rope
from jaxpretrain.models.olmo.variants import OLMO_SIZES

OLMO_1 = {"olmo_1b", "olmo_7b", "olmo_7b_0424", "olmo_7b_0724"}
OLMO_2_TRAINER = {"olmo2_1b", "olmo2_7b", "olmo2_13b"}
OLMO_3 = {"olmo3_7b", "olmo3_32b"}
CORE = {"olmo2_32b"} | OLMO_3
LADDER = {"olmo_20m", "olmo_60m", "olmo_150m", "olmo_300m", "olmo_750m"}


def having(**fields: object) -> set[str]:
    """The variants with these values."""
    return {
        variant
        for variant, config in OLMO_SIZES.items()
        if all(getattr(config, name) == value for name, value in fields.items())
    }


def num_params(config: Decoder) -> int:
    model = config.build({"tokens": ((2048,), "int32")}, platform="cpu")
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def closed_form(c: Decoder) -> int:
    """Matrices and norms of a layer times layers, the last norm, and one or two tables."""
    kv_width = c.d_model * (c.num_kv_heads or c.num_heads) // c.num_heads
    layer = 2 * c.d_model * (c.d_model + kv_width) + 3 * c.d_model * c.d_ff
    norms = 2 * c.d_model + (c.d_model + kv_width if c.qk_norm else 0)
    has_scales = isinstance(c.norm, RMSNorm)
    num_tables = 1 if c.tied_head else 2
    return (
        c.num_layers * (layer + has_scales * norms)
        + has_scales * c.d_model
        + num_tables * c.embedding_rows * c.d_model
    )


@pytest.mark.parametrize("name", OLMO_SIZES)
def test_every_size_has_the_parameters_of_its_closed_form(name):
    assert num_params(OLMO_SIZES[name]) == closed_form(OLMO_SIZES[name])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("olmo_1b", 1_176_764_416),
        ("olmo_7b", 6_888_095_744),
        ("olmo_7b_0724", 6_888_095_744),
        ("olmo2_1b", 1_484_916_736),
        ("olmo2_7b", 7_298_617_344),
        ("olmo2_13b", 13_716_198_400),
        ("olmo2_32b", 32_234_279_936),
        ("olmo3_7b", 7_298_617_344),
        ("olmo3_32b", 32_234_279_936),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(name, expected):
    assert closed_form(OLMO_SIZES[name]) == expected


def test_generations_have_their_architectures():
    assert set(OLMO_SIZES) == OLMO_1 | OLMO_2_TRAINER | CORE | LADDER
    olmo_1 = {"norm": LayerNorm(1e-5), "qk_norm": False, "init": Mitchell(cutoff=3.0)}
    assert having(**olmo_1) == OLMO_1
    trainer, core = RMSNorm(1e-6, "before_scale"), RMSNorm(1e-6, "after_scale")
    normal = Normal(std=0.02, cutoff=3.0)
    assert having(norm=trainer, qk_norm=True, init=normal) == OLMO_2_TRAINER
    assert having(norm=core, qk_norm=True, init=normal) == CORE
    ladder = {"norm": trainer, "qk_norm": False, "init": normal}
    assert having(**ladder) == LADDER
    small = {"norm_position": "before", "vocab_size": 50280, "embedding_rows": 50304}
    assert having(**small, rope=Rope(1e4)) == OLMO_1 | LADDER
    large = {"norm_position": "after", "vocab_size": 100278, "embedding_rows": 100352}
    assert having(**large, rope=Rope(5e5)) == OLMO_2_TRAINER | CORE
    assert having(tied_head=True) == {"olmo_1b"}
    assert having(clip_qkv=8.0) == {"olmo_7b_0424", "olmo_7b_0724"}
    assert having(num_kv_heads=8) == {"olmo2_32b", "olmo3_32b"}
    assert having(windows=(4096, 4096, 4096, None)) == OLMO_3
    assert having(windows=(None,)) == set(OLMO_SIZES) - OLMO_3


def test_generations_have_the_loss_and_the_precision_of_their_trainers():
    assert having(loss_denominator="all") == set(OLMO_SIZES) - CORE
    assert having(loss_denominator="predictable") == CORE
    assert having(z_loss=0.0) == OLMO_1 | {"olmo_20m", "olmo_60m"}
    assert having(z_loss=1e-4) == OLMO_2_TRAINER | {"olmo_150m", "olmo_300m", "olmo_750m"}
    assert having(z_loss=1e-5) == CORE
    assert having(residual_dtype="float32", dtype="bfloat16") == LADDER


def test_the_last_layer_of_olmo_3_sees_everything():
    for name in OLMO_3:
        c = OLMO_SIZES[name]
        assert c.num_layers % len(c.windows) == 0 and c.windows[-1] is None
