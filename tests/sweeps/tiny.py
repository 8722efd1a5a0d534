"""A sweep of a tiny decoder, and a launcher that trains it in this process."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.main import main
from jaxpretrain.sweeps.arms import Sweep
from jaxpretrain.sweeps.parsing import make_sweep

_CONFIG = """
from jaxpretrain.api import (
    AdamW, Checkpoint, Decoder, Eval, Experiment, Monitor, TextData, Train, Triangular
)


def get_config():
    return Experiment(
        model=Decoder(
            vocab_size=61, embedding_rows=64, d_model=16, num_layers=1, num_heads=4, d_ff=32,
            dtype="float32", remat="none",
        ),
        data=TextData(root={root!r}, seq_len=16),
        optim=AdamW(schedule=Triangular(warmup="1 steps")),
        train=Train(
            duration="4 steps",
            batch_size=8,
            compiler_options={{"xla_backend_optimization_level": "0"}},
        ),
        eval=Eval(every=0),
        checkpoint=Checkpoint(every=0),
        monitor=Monitor(every="1 steps", signals_every=0, tensorboard=False),
    )
"""
D_FF = {"model.d_ff": ["32", "40"]}
"""A grid of two arms: the config as it stands, and one with more parameters."""


def write_config(folder: Path) -> Path:
    """Writes token files and a config that trains on them."""
    random = np.random.default_rng(0)
    for split, count in (("train", 2000), ("validation", 300)):
        (folder / "tokens" / split).mkdir(parents=True)
        tokens = random.integers(61, size=count).astype("<u2")
        tokens.tofile(folder / "tokens" / split / "part.npy")
    path = folder / "tiny.py"
    path.write_text(_CONFIG.format(root=str(folder / "tokens")))
    return path


def tiny_sweep(folder: Path, **changes: object) -> Sweep:
    """The sweep of the grid `D_FF` with two seeds, or with other arguments of `make_sweep`."""
    given = {"grid": D_FF, "seeds": 2} | changes
    return make_sweep(str(write_config(folder)), **given)  # pyright: ignore[reportArgumentType]


@dataclass
class Ended:
    """A run that has ended with a code, after it was polled some times."""

    code: int
    polls: int = 0
    stopped: list[str] = field(default_factory=list)

    def poll(self) -> int | None:
        self.polls -= 1
        return None if self.polls >= 0 else self.code

    def stop(self) -> None:
        self.stopped.append("stop")

    def kill(self) -> None:
        self.stopped.append("kill")


@dataclass
class HereLauncher:
    """Trains each run in this process while it is started."""

    commands: list[Sequence[str]] = field(default_factory=list)
    has_room = True

    def start(self, command: Sequence[str], log: Path) -> Ended:
        self.commands.append(command)
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            return Ended(main(list(command[3:])))
        except InputError as error:
            log.write_text(f"error: {error}\n")
            return Ended(2)
