"""What all faults share: tokens, a tiny config, compiled programs, and results to equal."""

import json
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.data.prepare.prepare_text import PrepareText, prepare_text
from jaxpretrain.storage.jsonl import read_lines
from jaxpretrain.storage.paths import parse
from tests.faults import starts

NUM_STEPS = 12
SAVE_EVERY = 3
EVAL_EVERY = 6
NUM_DEVICES = 4
BATCH_SIZE = 8

CONFIG = """
from jaxpretrain.api import (
    AdamW, Checkpoint, Constant, Decoder, Eval, Experiment, Mesh, Monitor, Normal, TextData, Train
)


def get_config():
    return Experiment(
        model=Decoder(
            vocab_size=257,
            embedding_rows=264,
            d_model=32,
            num_layers=1,
            num_heads=4,
            d_ff=64,
            init=Normal(),
            dtype="float32",
            remat="none",
        ),
        data=TextData(root={root!r}, seq_len=16),
        optim=AdamW(schedule=Constant(peak=1e-3)),
        train=Train(
            duration="{num_steps} steps",
            batch_size={batch_size},
            compiler_options={{"xla_backend_optimization_level": "0"}},
        ),
        mesh=Mesh(replica=2, fsdp=2, tensor=1),
        eval=Eval(every="{eval_every} steps", max_examples=16),
        checkpoint=Checkpoint(every="{save_every} steps"),
        monitor=Monitor(every="1 steps", signals_every="6 steps", tensorboard=False),
    )
"""
WORDS = ("of", "the", "people", "and", "that", "union", "states", "congress", "law", "year")


@dataclass(frozen=True)
class Reference:
    """A run that nothing interrupted."""

    seconds: float
    """How long it took, once its programs were kept."""
    arrays: Mapping[str, np.ndarray]
    """Those of its last checkpoint."""
    lines: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class World:
    """A folder with all that runs need."""

    root: Path
    _references: dict[int, Reference] = field(default_factory=dict)
    """Number of processes -> its reference."""

    @property
    def config(self) -> Path:
        return self.root / "config.py"

    @property
    def tokens(self) -> Path:
        return self.root / "tokens"

    @property
    def compiled(self) -> Path:
        return self.root / "xla"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "JAXPRETRAIN_CACHE": str(self.root / "cache"),
            "JAX_COMPILATION_CACHE_DIR": str(self.compiled),
        }

    def prepare(self) -> None:
        """Makes the tokens and the config."""
        self.root.mkdir(parents=True, exist_ok=True)
        starts.in_child(_prepare, self.root)
        self.config.write_text(
            CONFIG.format(
                root=str(self.tokens),
                num_steps=NUM_STEPS,
                batch_size=BATCH_SIZE,
                eval_every=EVAL_EVERY,
                save_every=SAVE_EVERY,
            )
        )

    def reference(self, num_processes: int) -> Reference:
        """Returns an uninterrupted run, which is made where there is none yet."""
        if num_processes not in self._references:
            folder, began = self.root / f"alone-{num_processes}", 0.0
            for _ in range(2):  # the first compiles
                shutil.rmtree(folder, ignore_errors=True)
                began = time.monotonic()
                gang = starts.start(
                    [f"--config={self.config}", f"--workdir={folder}"],
                    self.root / f"logs-{num_processes}",
                    num_processes=num_processes,
                    num_devices=NUM_DEVICES,
                    environment=self.environment,
                )
                codes = gang.finish()
                assert codes == [0] * num_processes, (codes, gang.text())
            seconds = time.monotonic() - began
            self._references[num_processes] = Reference(seconds, *starts.in_child(_end, folder))
        return self._references[num_processes]


def _prepare(root: Path) -> None:
    draw = random.Random(0)
    for name in ("a", "b"):
        lines = (json.dumps({"text": " ".join(draw.choices(WORDS, k=60))}) for _ in range(60))
        (root / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    files = tuple(str(root / f"{name}.jsonl") for name in ("a", "b"))
    prepared = PrepareText(files=files, validation_fraction=0.2, vocab_size=257, name="words")
    shutil.rmtree(root / "tokens", ignore_errors=True)
    prepare_text(prepared, root / "tokens", workers=1)


def steps_of(workdir: str) -> list[int]:
    """Returns the steps of a run, on a disk or in a bucket, that have a checkpoint."""
    return starts.in_child(_steps, workdir)


def _steps(workdir: str) -> list[int]:
    return Checkpoints(parse(workdir) / "checkpoints", read_only=True).steps()


def differences(workdir: str, reference: Reference) -> tuple[int, bool]:
    """Returns how many bits of the last checkpoint differ, and whether the lines of metrics do.

    Lines are compared without what depends on time and sessions.
    """
    return starts.in_child(_differences, workdir, reference)


def _differences(workdir: str, reference: Reference) -> tuple[int, bool]:
    arrays, lines = _end(parse(workdir))
    assert arrays.keys() == reference.arrays.keys(), arrays.keys() ^ reference.arrays.keys()
    bits = sum(_bits(arrays[name], array) for name, array in reference.arrays.items())
    return bits, lines != reference.lines


def _end(workdir: Path) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Returns the arrays of the last checkpoint, and the lines of metrics."""
    stored = Checkpoints(workdir / "checkpoints", read_only=True).stream(NUM_STEPS).items()
    arrays = {name: np.concatenate([np.atleast_1d(x) for x in a.parts()]) for name, a in stored}
    lines = read_lines(workdir / "metrics.jsonl")
    return arrays, [_untimed(line) for line in lines if "run/num_devices" not in line]


def _untimed(line: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in line.items() if not k.startswith(("time", "perf/"))}


def _bits(a: np.ndarray, b: np.ndarray) -> int:
    x, y = (np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8) for array in (a, b))
    return int(np.unpackbits(x ^ y).sum()) if len(x) == len(y) else 8 * max(len(x), len(y))
