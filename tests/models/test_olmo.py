import math

import jax
import pytest

from jaxpretrain.models.olmo import VARIANTS


def num_params(name: str) -> int:
    model = VARIANTS[name].build({"tokens": ((2048,), "int32")}, platform="cpu")
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("olmo_1b", 1_176_764_416),
        ("olmo_7b", 6_888_095_744),
        ("olmo2_1b", 1_484_916_736),
        ("olmo2_7b", 7_298_617_344),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(name, expected):
    assert num_params(name) == expected


@pytest.mark.parametrize(("name", "d", "d_ff"), [("olmo_20m", 256, 1024), ("olmo_60m", 512, 2048)])
def test_ladder_sizes_have_their_number_of_parameters(name, d, d_ff):
    """Eight layers, untied, with RMSNorm before attention, before the MLP and at the end."""
    assert num_params(name) == 8 * (4 * d * d + 3 * d * d_ff + 2 * d) + d + 2 * 50304 * d


def test_generations_have_their_traits():
    for name in ("olmo_1b", "olmo_7b"):
        c = VARIANTS[name]
        assert (c.norm, c.norm_position, c.norm_epsilon) == ("layernorm", "before", 1e-5)
        assert (c.qk_norm, c.rope_theta, c.init, c.init_cutoff) == (False, 1e4, "mitchell", 3.0)
        assert (c.vocab_size, c.embedding_rows, c.z_loss) == (50280, 50304, 0.0)
    for name in ("olmo2_1b", "olmo2_7b"):
        c = VARIANTS[name]
        assert (c.norm, c.norm_position, c.norm_epsilon) == ("rmsnorm", "after", 1e-6)
        assert (c.qk_norm, c.rope_theta, c.init, c.init_cutoff) == (True, 5e5, "normal", 3.0)
        assert (c.vocab_size, c.embedding_rows, c.init_std) == (100278, 100352, 0.02)
    assert {name for name, c in VARIANTS.items() if c.tied_head} == {"olmo_1b"}
    assert all(c.clip_qkv is None and c.num_kv_heads is None for c in VARIANTS.values())
