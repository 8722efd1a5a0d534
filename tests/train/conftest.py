"""A tiny experiment on token files of a process that can be learnt."""

from pathlib import Path

import jax
import numpy as np
import pytest

from jaxpretrain.data.text.text import TextData
from jaxpretrain.evals.config import Eval
from jaxpretrain.models.olmo.config import Normal
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.optim.schedules import Triangular
from jaxpretrain.train.experiment import Checkpoint, Experiment, Monitor, Train, resolve
from jaxpretrain.train.program import Program, make_program
from jaxpretrain.train.step import TrainState

VOCAB_SIZE = 61


def _walk(num_tokens: int, seed: int) -> np.ndarray:
    """Token ids that mostly follow from the one before."""
    random = np.random.default_rng(seed)
    tokens = random.integers(VOCAB_SIZE, size=num_tokens)
    for i in np.flatnonzero(random.random(num_tokens) < 0.9)[1:]:
        tokens[i] = (3 * tokens[i - 1] + 1) % VOCAB_SIZE
    return tokens.astype("<u2")


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw token files, a folder a split."""
    root = tmp_path_factory.mktemp("tokens")
    for seed, (split, num_tokens) in enumerate({"train": 6000, "validation": 700}.items()):
        (root / split).mkdir()
        _walk(num_tokens, seed).tofile(root / split / "part.npy")
    return root


@pytest.fixture(scope="session")
def experiment(tokens: Path) -> Experiment:
    """Five steps of a tiny decoder, in float32."""
    return Experiment(
        model=Decoder(
            vocab_size=VOCAB_SIZE,
            embedding_rows=64,
            d_model=32,
            num_layers=2,
            num_heads=8,
            d_ff=64,
            init=Normal(),
            dtype="float32",
            remat="none",
        ),
        data=TextData(root=str(tokens), seq_len=16),
        # A large epsilon, so that rounding errors of tiny gradients do not become whole updates.
        optim=AdamW(
            schedule=Triangular(start=1e-3, peak=1e-2, end=1e-4, warmup="2 steps"), epsilon=1e-3
        ),
        train=Train(
            duration="5 steps",
            batch_size=16,
            compiler_options={"xla_backend_optimization_level": "0"},  # quick to compile
        ),
        eval=Eval(every="2 steps", max_examples=20),
        checkpoint=Checkpoint(every="2 steps"),
        monitor=Monitor(every="1 steps", signals_every="2 steps", tensorboard=False),
    )


@pytest.fixture(scope="session")
def program(experiment: Experiment) -> Program:
    """The experiment on one device."""
    return make_program(resolve(experiment), jax.devices()[:1])


@pytest.fixture(scope="session")
def compiled(program: Program):
    """Its step."""
    return program.compile()


@pytest.fixture(scope="session")
def fresh(program: Program) -> TrainState:
    """Its fresh state, as numpy arrays: a step donates what it is given."""
    return jax.tree.map(np.array, program.create_state())
