"""Times what keeps a run safe: saves beside steps, the watchdog's notes, the start after a kill.

python scripts/bench_reliability.py --json

A small decoder trains on random tokens on this machine's devices. Medians over the rounds are
printed, since other work on the machine slows single steps.

- saves: a step alone, for how long a save holds up the steps, and a step while a save is written.
- watchdog: what the training loop tells the watchdog in one step.
- recovery: from SIGKILL of the training command to the next finished step, and its parts. `start`
  is the time of a process that imports all that training needs, measured by itself.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np

from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.config.command import Parser, run
from jaxpretrain.data.prepare.prepare_text import PrepareText, prepare_text
from jaxpretrain.data.text.text import TextData
from jaxpretrain.devices.startup import use_huge_pages
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.train import experiment
from jaxpretrain.train.program import make_program
from jaxpretrain.train.watchdog import Watchdog

CONFIG = """
from jaxpretrain.api import AdamW, Checkpoint, Decoder, Experiment, Monitor, TextData, Train


def get_config():
    return Experiment(
        model=Decoder(
            vocab_size=257,
            embedding_rows=264,
            d_model={d_model},
            num_layers={num_layers},
            num_heads=8,
            d_ff=4 * {d_model},
        ),
        data=TextData(root={root!r}, seq_len={seq_len}),
        optim=AdamW(),
        train=Train(duration="100000 steps", batch_size={batch_size}),
        checkpoint=Checkpoint(every="3 steps"),
        monitor=Monitor(every="1 steps", tensorboard=False),
    )
"""


def main(argv: list[str]) -> None:
    """Prints one JSON document."""
    flags = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        report = {
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "load": os.getloadavg()[0],
            "saves": time_saves(flags, Path(folder) / "saves"),
            "watchdog": time_watchdog(),
            "recovery": time_recovery(flags, Path(folder)),
        }
    print(json.dumps(report, indent=None if flags.json else 2))


def parse(argv: list[str]) -> argparse.Namespace:
    """Returns the flags."""
    parser = Parser(prog="python scripts/bench_reliability.py", description=__doc__)
    sizes = {"d_model": 256, "num_layers": 4, "seq_len": 256, "batch_size": 4}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--saves", type=int, default=10)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    return parser.parse_args(argv)


def time_saves(flags: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Returns the seconds of steps alone and beside a save, and of the saves."""
    model = Decoder(
        vocab_size=257,
        embedding_rows=264,
        d_model=flags.d_model,
        num_layers=flags.num_layers,
        num_heads=8,
        d_ff=4 * flags.d_model,
    )
    config = experiment.Experiment(
        model=model,
        data=TextData(seq_len=flags.seq_len),
        optim=AdamW(),
        train=experiment.Train(duration=10_000, batch_size=flags.batch_size),
    )
    program = make_program(experiment.resolve(config), jax.devices())
    step, state = program.compile(), program.create_state()
    tokens = np.random.default_rng(0).integers(257, size=(flags.batch_size, flags.seq_len))
    batch = program.layout.put({"tokens": tokens.astype(np.int32)}, flags.batch_size)
    checkpoints = Checkpoints(folder, keep_last=1)
    alone: list[float] = []
    beside: list[float] = []
    held_up: list[float] = []
    whole: list[float] = []

    def train(seconds: list[float]) -> None:
        nonlocal state
        began = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch))
        seconds.append(time.perf_counter() - began)

    for _ in range(3):
        train([])
    for number in range(1, flags.saves + 2):
        for _ in range(5):
            train(alone)
        began = time.perf_counter()
        checkpoints.save(number, state, {})
        held_up.append(time.perf_counter() - began)
        while not (ended := checkpoints.ended()):
            train(beside)
        whole.append(ended[0].seconds)
    return {
        "bytes": float(sum(x.nbytes for x in jax.tree.leaves(state))),
        "step_seconds": median(alone),
        "held_up_seconds": median(held_up[1:]),  # the first compiles the checksums
        "save_seconds": median(whole[1:]),
        "step_seconds_beside_a_save": median(beside),
        "steps_beside_a_save": len(beside) / len(whole),
    }


def time_watchdog(num_steps: int = 20_000) -> dict[str, float]:
    """Returns the seconds that a step spends on telling the watchdog what it does."""
    with Watchdog(None) as dog:
        dog.begin(None)
        began = time.process_time()
        for number in range(num_steps):
            dog.enter("batch", number)
            dog.enter("step", number)
            dog.enter("step", number)
            dog.finish(number)
        return {"seconds_per_step": (time.process_time() - began) / num_steps}


def time_recovery(flags: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Returns the median seconds from SIGKILL to the next finished step, with their parts."""
    draw = random.Random(0)
    lines = (json.dumps({"text": f"{draw.random()} " * 30}) for _ in range(300))
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
    prepared = PrepareText(
        files=(str(folder / "text.jsonl"),), validation_fraction=0.1, vocab_size=257, name="numbers"
    )
    prepare_text(prepared, folder / "tokens", workers=1)
    sizes = {name: getattr(flags, name) for name in ("d_model", "num_layers", "seq_len")}
    content = CONFIG.format(root=str(folder / "tokens"), batch_size=flags.batch_size, **sizes)
    (folder / "config.py").write_text(content)
    command = [sys.executable, "-m", "jaxpretrain.main", f"--config={folder / 'config.py'}"]
    command.append(f"--workdir={folder / 'run'}")
    starts: list[Mapping[str, float]] = []
    for _ in range(flags.kills + 1):
        before = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        _wait(before, "saved step ")
        before.send_signal(signal.SIGKILL)
        killed = time.time()
        before.communicate()
        after = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        _wait(after, "step ")
        total = time.time() - killed
        after.send_signal(signal.SIGTERM)
        after.communicate()
        session = json.loads((folder / "run" / "sessions.json").read_text())["sessions"][-1]
        parts = {name: session[name] for name in ("rendezvous", "restore")}
        parts["compile"] = session["seconds"]["compile"] - session["clock"]["compile"]
        starts.append({"seconds": total, "start": _seconds_to_import(), **parts})
    found = {name: median(start[name] for start in starts[1:]) for name in starts[0]}
    return found | {"rest": 2 * found["seconds"] - sum(found.values())}


def _seconds_to_import() -> float:
    """Returns the seconds of a process that imports what training needs, and the CPU's backend."""
    code = "import grain, jax, jaxpretrain.planning.training; jax.devices()"
    began = time.time()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.time() - began


def _wait(process: Any, beginning: str) -> None:
    """Waits until a process prints a line that begins so."""
    for line in process.stderr:
        if line.startswith(beginning):
            return
    raise RuntimeError(f"it ended with {process.wait()} before the line {beginning!r}")


if __name__ == "__main__":
    use_huge_pages()
    run(main)
