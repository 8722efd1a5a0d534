"""Times a sweep against the same runs started by hand, one and two at a time.

    python scripts/bench_sweep.py --folder=/tmp/bench_sweep

Two arms with three seeds and 100 steps each. The prepared data and the compiled programs are there
before (a first sweep makes them): each way finds the same. Prints JSON: seconds of each way,
`ratio`, the best sweep over the best way by hand, and `overhead`, the part by which a sweep takes
longer than the runs by hand with as many at a time: planning, statistics and the page.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxpretrain.config.command import Parser, run

SHARED = {
    "train.duration": "100 steps",
    "optim.schedule.warmup": "20 steps",
    "eval.every": "0",
    "eval.samples": "none",
    "eval.max_examples": "100",
}
ARMS = ("true", "false")
SEEDS = 3


def main(argv: list[str]) -> None:
    """Prints one JSON document."""
    parser = Parser(prog="python scripts/bench_sweep.py", description=__doc__)
    parser.add_argument("--config", default="configs/olmo_nano.py")
    parser.add_argument("--folder", type=Path, required=True, help="for runs; emptied before")
    flags = parser.parse_args(argv)
    sweep(flags.config, flags.folder / "first", 2)
    ways: dict[str, Callable[[Path], object]] = {
        "by_hand_1": lambda folder: by_hand(flags.config, folder, 1),
        "by_hand_2": lambda folder: by_hand(flags.config, folder, 2),
        "sweep_1": lambda folder: sweep(flags.config, folder, 1),
        "sweep_2": lambda folder: sweep(flags.config, folder, 2),
    }
    seconds = {}
    for name, way in ways.items():
        start = time.perf_counter()
        way(flags.folder / name)
        seconds[name] = round(time.perf_counter() - start, 1)
        print(f"{name}: {seconds[name]} s", file=sys.stderr, flush=True)
    hand = min(seconds["by_hand_1"], seconds["by_hand_2"])
    best = min(seconds["sweep_1"], seconds["sweep_2"])
    document = {
        "seconds": seconds,
        "ratio": round(best / hand, 3),
        "overhead": {
            jobs: round(seconds[f"sweep_{jobs}"] / seconds[f"by_hand_{jobs}"] - 1, 3)
            for jobs in (1, 2)
        },
    }
    print(json.dumps(document, indent=2))


def sweep(config: str, folder: Path, jobs: int) -> None:
    """Runs the sweep in a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    call(
        "jaxpretrain.sweep",
        config,
        folder,
        [f"--grid.model.qk_norm={','.join(ARMS)}", f"--seeds={SEEDS}", f"--jobs={jobs}"],
    )


def by_hand(config: str, folder: Path, at_once: int) -> None:
    """Runs the same six runs, so many at a time, without a sweep."""
    shutil.rmtree(folder, ignore_errors=True)
    settings = [(arm, seed) for seed in range(SEEDS) for arm in ARMS]

    def train(setting: tuple[str, int]) -> None:
        arm, seed = setting
        own = [f"--config.model.qk_norm={arm}", f"--config.seed={6198 + seed}"]
        call("jaxpretrain.main", config, folder / arm / str(seed), own)

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(train, settings))


def call(module: str, config: str, folder: Path, flags: Sequence[str]) -> None:
    """Runs a command of the package; its output is kept for an error alone."""
    shared = [f"--config.{path}={value}" for path, value in SHARED.items()]
    command = [sys.executable, "-m", module, f"--config={config}", f"--workdir={folder}"]
    done = subprocess.run([*command, *shared, *flags], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command)} failed:\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    run(main)
