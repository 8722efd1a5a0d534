import dataclasses

import jax
import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.config.renames import upgraded
from jaxpretrain.config.serialize import from_dict
from jaxpretrain.data.text.text import TextData
from jaxpretrain.models.layers import LayerNorm, RMSNorm
from jaxpretrain.models.olmo.config import FullMegatron, Mitchell, Normal
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.olmo.rotary import Rope, Yarn
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.train.experiment import Experiment
from tests.models.olmo.conftest import OLMO_1, OLMO_2, build


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, "cannot divide model.d_model by model.num_heads: 24 / 5"),
        ({"num_heads": 0}, "model.num_heads=0: must be from 1 to 16777216"),
        ({"d_model": -8}, "model.d_model=-8: must be from 1 to 16777216"),
        ({"num_kv_heads": 3}, "cannot divide model.num_heads by model.num_kv_heads: 4 / 3"),
        ({"num_kv_heads": 0}, "model.num_kv_heads=0: must be from 1 to 16777216, or none"),
        ({"windows": (3, 3, None)}, "model.num_layers by the length of model.windows: 4 / 3"),
        ({"windows": ()}, "4 / 0"),
        ({"windows": (0,)}, "model.windows.0=0: must be from 1 to 16777216, or none"),
        ({"windows": (3, -1)}, "model.windows.1=-1: must be from 1 to 16777216, or none"),
        ({"num_layers": 0}, "model.num_layers=0: must be from 1 to 1000"),
        ({"num_heads": 8}, "the head size d_model / num_heads by 2 (rotary): 3 / 2"),
        ({"embedding_rows": 28}, "model.embedding_rows=28 is less than model.vocab_size=29"),
        ({"d_ff": 0}, "model.d_ff=0: must be from 1 to 16777216"),
        ({"vocab_size": 0}, "model.vocab_size=0: must be from 1 to 2147483647"),
        ({"norm": RMSNorm(epsilon=0.0)}, "model.norm.epsilon=0.0: must be above 0 and 1 or less"),
        ({"clip_qkv": 0.0}, "model.clip_qkv=0.0: must be positive"),
        ({"document_end": 29}, "model.document_end=29 is not below model.vocab_size=29"),
        ({"rope": Yarn(factor=0.5)}, "model.rope.factor=0.5: must be 1 or more"),
        (
            {"rope": Yarn(beta_fast=0.5)},
            "model.rope.beta_slow=1.0: must be above 0 and no more than model.rope.beta_fast=0.5",
        ),
        ({"rope": Yarn(original_length=6)}, "model.rope.original_length=6: must be at least"),
        ({"init": Mitchell(cutoff=-1.0)}, "model.init.cutoff=-1.0: must be positive"),
    ],
    ids=str,
)
def test_sizes_that_cannot_be_are_refused_in_one_line(change, message):
    with pytest.raises(InputError) as error:
        build(dataclasses.replace(OLMO_1, **change))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


OLD = {
    "class": "decoder",
    **{"norm": "rmsnorm", "norm_epsilon": 1e-6, "norm_rounding": "after_scale"},
    **{"init": "normal", "init_std": 0.3, "init_cutoff": None},
    **{"rope_theta": 5e5, "yarn": None, "loss_chunk": 64, "d_model": 64},
}
"""A model as versions saved it that had these fields side by side."""


OLD_YARN = {"factor": 4.0, "original_length": 128, "beta_fast": 16.0, "beta_slow": 2.0}


@pytest.mark.parametrize(
    ("changed", "now"),
    [
        ({}, {}),
        ({"norm": "layernorm"}, {"norm": LayerNorm(1e-6)}),
        ({"init": "mitchell", "init_cutoff": 2.0}, {"init": Mitchell(2.0)}),
        ({"init": "full_megatron"}, {"init": FullMegatron(0.3, None)}),
        ({"yarn": OLD_YARN}, {"rope": Yarn(5e5, 4.0, 128, 16.0, 2.0)}),
    ],
    ids=["olmo2", "layer_norm", "mitchell", "full_megatron", "yarn"],
)
def test_a_saved_model_of_older_versions_is_read(changed, now):
    expected = Decoder(
        d_model=64,
        norm=RMSNorm(1e-6, "after_scale"),
        init=Normal(0.3, None),
        rope=Rope(5e5),
    )
    document = upgraded({"model": OLD | changed})["model"]
    assert from_dict(Decoder, document) == dataclasses.replace(expected, **now)
    assert upgraded({"model": document})["model"] == document


@pytest.mark.parametrize(
    ("path", "now"),
    [
        ("norm_epsilon", "model.norm.epsilon"),
        ("norm_rounding", "model.norm.rounding"),
        ("init_std", "model.init.std"),
        ("init_cutoff", "model.init.cutoff"),
        ("rope_theta", "model.rope.theta"),
        ("yarn", "model.rope=yarn"),
        ("yarn.factor", "model.rope=yarn, then model.rope.factor"),
        ("loss_chunk", "nothing; the loss takes 512 positions"),
    ],
)
def test_an_old_path_is_refused_with_the_new_one(path, now):
    experiment = Experiment(OLMO_2, TextData(), AdamW())
    with pytest.raises(InputError, match=rf"^--config\.model\.{path} is written .* now: {now}"):
        apply_overrides(experiment, [(f"model.{path}", "1")])


def test_the_words_of_choices_are_told_where_they_have_changed():
    experiment = Experiment(OLMO_2, TextData(), AdamW())
    for old, now in (("rmsnorm", "rms_norm"), ("layernorm", "layer_norm")):
        with pytest.raises(InputError, match=f"Did you mean '{now}'"):
            apply_overrides(experiment, [("model.norm", old)])
    with pytest.raises(InputError, match="belongs to rms_norm; choose it first"):
        plain = apply_overrides(experiment, [("model.norm", "layer_norm")])
        apply_overrides(plain, [("model.norm.rounding", "after_scale")])


WIDE = dataclasses.replace(OLMO_1, d_model=128, d_ff=192, num_layers=3, embedding_rows=256)


@pytest.mark.parametrize(
    ("init", "stds"),
    [
        (
            Normal(std=0.05),
            dict.fromkeys(("embed", "head", "query", "gate", "output", "down"), 0.05),
        ),
        (
            Mitchell(),
            {
                "embed": 128**-0.5,
                "head": 128**-0.5,
                "query": 128**-0.5,
                "gate": 128**-0.5,
                "output": [(2 * 128 * layer) ** -0.5 for layer in (1, 2, 3)],
                "down": [(2 * 192 * layer) ** -0.5 for layer in (1, 2, 3)],
            },
        ),
        (
            FullMegatron(std=0.05),
            {
                "embed": 0.05,
                "head": 128**-0.5,
                "query": 0.05,
                "gate": 0.05,
                "output": 0.05 / 6**0.5,
                "down": 0.05 / 6**0.5,
            },
        ),
    ],
)
def test_initial_weights_have_olmos_standard_deviations(init, stds):
    config = dataclasses.replace(WIDE, init=init)
    params = jax.jit(build(config).init)(jax.random.key(1))
    block = params["blocks"]["0"]
    same = {"key": "query", "value": "query", "up": "gate"}
    for name in (*stds, *same):
        std = stds[same.get(name, name)]
        if name in ("embed", "head"):
            stack = next(iter(params[name].values()))[None]
        else:
            stack = block[name]["kernel"]
        stack = np.asarray(stack, np.float64)
        std = np.broadcast_to(std, len(stack))
        # 16,384 draws or more: the estimate is good to 0.6 %.
        np.testing.assert_allclose(stack.std(axis=(1, 2)), 0.98658 * std, rtol=0.025)
        largest = np.abs(stack).max(axis=(1, 2))
        assert np.all(largest <= 3.0 * std * (1 + 1e-6)) and np.all(largest > 2.8 * std)
