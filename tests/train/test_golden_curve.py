"""Twenty steps of each model family against a recorded curve.

A change of the curve is a change of what training computes. Where it is meant, write the file anew
with `python tests/train/test_golden_curve.py` and say in the commit why it changed.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxpretrain.data.images.images import ImageData
from jaxpretrain.data.text.text import TextData
from jaxpretrain.models.layers import RMSNorm
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.sapiens.model import VitMae
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.optim.schedules import Triangular, WarmupCosine
from jaxpretrain.train.experiment import Experiment, Train, resolve
from jaxpretrain.train.program import make_program

GOLDEN = Path(__file__).parent.parent / "golden"

Curve = dict[str, list[float]]
"""Losses and gradient norms."""


def decoder_curve() -> Curve:
    """An OLMo-2-like decoder on tokens that can be learnt."""
    model = Decoder(
        vocab_size=64,
        embedding_rows=64,
        d_model=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        d_ff=64,
        norm=RMSNorm(),
        norm_position="after",
        qk_norm=True,
        windows=(8, None),
        z_loss=1e-4,
        dtype="float32",
        remat="full",
    )
    experiment = Experiment(
        model=model,
        data=TextData(seq_len=32),
        optim=AdamW(schedule=Triangular(start=1e-3, peak=1e-2, end=1e-3, warmup="5 steps")),
        train=Train(duration="20 steps", batch_size=8, microbatch_size=4),
    )
    start = np.random.default_rng(0).integers(64, size=(20, 8, 1))
    tokens = (start + 5 * np.arange(32)) % 64
    return _train(experiment, [{"tokens": batch} for batch in tokens.astype(np.int32)])


def vit_mae_curve() -> Curve:
    """A masked autoencoder on waves of random direction and colour."""
    model = VitMae(
        patch_size=4,
        d_model=32,
        num_layers=2,
        num_heads=4,
        d_ff=64,
        decoder_d_model=16,
        decoder_num_layers=1,
        decoder_num_heads=2,
        dtype="float32",
        remat="full",
    )
    experiment = Experiment(
        model=model,
        data=ImageData(size=16),
        optim=AdamW(
            schedule=WarmupCosine(start=1e-5, peak=1e-2, end=0.0, warmup="5 steps"),
            weight_decay=0.05,
        ),
        train=Train(duration="20 steps", batch_size=8, microbatch_size=4),
    )
    random = np.random.default_rng(0)
    slope, colour = random.uniform(-1, 1, (2, 20, 8, 1, 1, 1)), random.random((20, 8, 1, 1, 3))
    y, x = np.arange(16)[:, None, None], np.arange(16)[None, :, None]
    waves = 0.5 + 0.5 * np.sin(slope[0] * y + slope[1] * x) * colour
    return _train(experiment, [{"images": batch} for batch in (255 * waves).astype(np.uint8)])


def _train(experiment: Experiment, batches: list[dict[str, np.ndarray]]) -> Curve:
    program = make_program(resolve(experiment), jax.devices()[:1])
    step, state = program.compile(), program.create_state()
    curve: Curve = {"loss": [], "grad_norm": []}
    for batch in batches:
        state, metrics = step(state, program.layout.put(batch, 8))
        for name, values in curve.items():
            values.append(float(metrics[name]))
    return curve


CURVES = {"decoder": decoder_curve, "vit_mae": vit_mae_curve}


@pytest.mark.parametrize("family", CURVES)
def test_each_family_trains_as_recorded(family: str):
    golden, curve = json.loads((GOLDEN / f"{family}_curve.json").read_text()), CURVES[family]()
    assert golden["loss"][-1] < 0.7 * golden["loss"][0]
    for name, values in golden.items():
        # Compilers and processors order sums differently; what is learnt is the same.
        np.testing.assert_allclose(curve[name], values, rtol=2e-3, err_msg=f"see {__name__}")


if __name__ == "__main__":
    for family, curve in CURVES.items():
        (GOLDEN / f"{family}_curve.json").write_text(json.dumps(curve(), indent=1) + "\n")
