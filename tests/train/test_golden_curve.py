"""Twenty steps of each model family against a recorded curve.

A change of the curve is a change of what training computes. Where it is meant, write the file anew
with `python tests/train/test_golden_curve.py` and say in the commit why it changed.
"""

import json
from pathlib import Path

import jax
import numpy as np

from jaxpretrain.data.text import TextData
from jaxpretrain.models.decoder import Decoder
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.optim.schedules import Triangular
from jaxpretrain.train.experiment import Experiment, Train, resolve
from jaxpretrain.train.program import make_program

GOLDEN = Path(__file__).parent.parent / "golden" / "decoder_curve.json"


def decoder_curve() -> dict[str, list[float]]:
    """Losses and gradient norms of an OLMo-2-like decoder on tokens that can be learnt."""
    model = Decoder(
        vocab_size=64,
        embedding_rows=64,
        d_model=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        d_ff=64,
        norm="rmsnorm",
        norm_position="after",
        qk_norm=True,
        windows=(8, None),
        z_loss=1e-4,
        loss_chunk=12,
        dtype="float32",
        remat="full",
    )
    experiment = Experiment(
        model=model,
        data=TextData(seq_len=32),
        optim=AdamW(schedule=Triangular(1e-3, 1e-2, 1e-3, warmup="5 steps")),
        train=Train(duration="20 steps", batch_size=8, microbatch_size=4),
    )
    program = make_program(resolve(experiment), jax.devices()[:1])
    step, state = program.compile(), program.create_state()
    start = np.random.default_rng(0).integers(64, size=(20, 8, 1))
    tokens = (start + 5 * np.arange(32)) % 64
    curve: dict[str, list[float]] = {"loss": [], "grad_norm": []}
    for batch in tokens.astype(np.int32):
        state, metrics = step(state, program.layout.put({"tokens": batch}, 8))
        for name, values in curve.items():
            values.append(float(metrics[name]))
    return curve


def test_the_decoder_trains_as_recorded():
    golden, curve = json.loads(GOLDEN.read_text()), decoder_curve()
    assert golden["loss"][-1] < 0.7 * golden["loss"][0]
    for name, values in golden.items():
        # Compilers and processors order sums differently; what is learnt is the same.
        np.testing.assert_allclose(curve[name], values, rtol=2e-3, err_msg=f"see {__name__}")


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(decoder_curve(), indent=1) + "\n")
