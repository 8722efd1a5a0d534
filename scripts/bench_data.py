"""What the data path delivers on one core: tokens a second, memory of an index, time to start.

    python scripts/bench_data.py [--seq_len=2048] [--batch_size=32] [--seconds=2] [--json]

Writes token files of random ids to a temporary folder (256 MB, so that they stay in the page
cache) and reads whole batches of them, on one core: what a training host can be fed at most, with
the model's own work elsewhere. The loader's thread shares that core with its consumer.
"""

import json
import multiprocessing
import os
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from jaxpretrain.config.command import Parser, run
from jaxpretrain.data.loader import load_batches
from jaxpretrain.data.mixture import Mixture, MixtureSource
from jaxpretrain.data.order import HashedOrder, OlmoOrder, Order, OrderName
from jaxpretrain.data.text import TextData

NUM_FILES, FILE_TOKENS = 16, 2**23
VOCAB_SIZE = 50_280
BILLION, TEN_MILLION = 10**9, 10**7
ORDERS: tuple[OrderName, ...] = ("olmo", "hashed")


def main(argv: list[str]) -> None:
    flags = _flags(argv)
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    with tempfile.TemporaryDirectory() as folder:
        _write_files(Path(folder))
        configs = _configs(folder, flags.seq_len)
        summary = {
            "machine": f"{_cpu()}, core {core}",
            "load_average": round(os.getloadavg()[0], 1),  # of others too: above 1, rates suffer
            "versions": {name: version(name) for name in ("numpy", "grain")},
            "python": platform.python_version(),
            "batch": [flags.batch_size, flags.seq_len],
            "memory": _memory(),  # first: the children must not inherit threads
            "tokens_per_second": _throughput(configs, flags.batch_size, flags.seconds),
            "seconds_to_first_batch": {
                name: _starts(config, flags.batch_size) for name, config in configs.items()
            },
        }
    print(json.dumps(summary) if flags.json else _table(summary))


def _flags(argv: list[str]) -> Any:
    parser = Parser(prog="python scripts/bench_data.py", description=__doc__)
    parser.add_argument("--seq_len", type=int, default=2048, help="tokens of a sequence")
    parser.add_argument("--batch_size", type=int, default=32, help="sequences of a batch")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each measurement")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    return parser.parse_args(argv)


def _write_files(folder: Path) -> None:
    """Two sources of half the files each."""
    rng = np.random.default_rng(0)
    for number in range(NUM_FILES):
        path = folder / "ab"[number % 2] / f"{number:02}.npy"
        path.parent.mkdir(exist_ok=True)
        rng.integers(0, VOCAB_SIZE, FILE_TOKENS, dtype=np.uint16).tofile(path)


def _configs(folder: str, seq_len: int) -> dict[str, TextData | Mixture]:
    sources = {
        name: MixtureSource(root=f"{folder}/{name}", weight=weight)
        for name, weight in (("a", 0.7), ("b", 0.3))
    }
    plain = {order: TextData(root=folder, seq_len=seq_len, order=order) for order in ORDERS}
    mixed = {
        f"mixture, {order}": Mixture(sources, seq_len=seq_len, order=order) for order in ORDERS
    }
    return plain | mixed


def _throughput(
    configs: dict[str, TextData | Mixture], batch_size: int, seconds: float
) -> dict[str, float]:
    rates = {}
    for name, config in configs.items():
        data = config.open(seed=0, limits={"tokens": VOCAB_SIZE})

        def read(step: int, data: Any = data) -> dict[str, np.ndarray]:
            return data.batch(np.arange(step * batch_size, (step + 1) * batch_size))

        per_batch = batch_size * config.seq_len
        _rate(read, seconds / 2)  # the page cache, and the first shuffle
        rates[f"{name}: read"] = per_batch * _rate(read, seconds)
        with load_batches(read, 0, 10**9) as batches:
            rates[f"{name}: loader"] = per_batch * _rate(lambda _, b=batches: next(b), seconds)
    return {name: round(rate) for name, rate in rates.items()}


def _rate(call: Callable[[int], object], seconds: float) -> float:
    """Calls a second, the median of five stretches."""
    rates, step = [], 0
    for _ in range(5):
        first, start = step, time.perf_counter()
        while (passed := time.perf_counter() - start) < seconds / 5:
            call(step)
            step += 1
        rates.append((step - first) / passed)
    return statistics.median(rates)


def _starts(config: TextData | Mixture, batch_size: int) -> dict[str, float]:
    """Seconds from the config to the first batch through the loader, by the step to begin with."""
    seconds = {}
    for step in (0, 10**3, 10**6):
        start = time.perf_counter()
        data = config.open(seed=0, limits={"tokens": VOCAB_SIZE})
        first = step * batch_size + np.arange(batch_size)
        with load_batches(lambda _, d=data, f=first: d.batch(f), step, 10**9) as batches:
            next(batches)
            seconds[f"{step:,}"] = round(time.perf_counter() - start, 4)
    return seconds


def _memory() -> dict[str, float]:
    """Growth of the resident memory with an order, at its peak, in a process of its own."""
    hashed = _growth(_use_hashed)
    olmo = _growth(_use_olmo)
    return {
        "hashed, bytes for 1e9 sequences": hashed,
        "olmo, bytes for 1e7 sequences": olmo,
        "olmo, bytes a sequence": round(olmo / TEN_MILLION, 2),
    }


def _use_hashed() -> None:
    _use(HashedOrder(BILLION, seed=0), BILLION)


def _use_olmo() -> None:
    _use(OlmoOrder(TEN_MILLION, seed=0), TEN_MILLION)


def _use(order: Order, num_examples: int) -> None:
    """Batches all over two epochs."""
    for start in np.linspace(0, 2 * num_examples - 100, 200, dtype=np.int64):
        order(start + np.arange(100))


def _growth(work: Callable[[], None]) -> int:
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def measure() -> None:
        before = _peak_bytes()
        work()
        queue.put(_peak_bytes() - before)

    process = context.Process(target=measure)
    process.start()
    process.join()
    return queue.get()


def _peak_bytes() -> int:
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match[1]) * 1024


def _cpu() -> str:
    match = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return match[1] if match else platform.machine()


def _table(summary: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in summary["versions"].items())
    lines = [f"{summary['machine']}, load {summary['load_average']}"]
    lines += [f"Python {summary['python']}, {versions}"]
    lines += [f"batches of {summary['batch'][0]} x {summary['batch'][1]} tokens"]
    rates = summary["tokens_per_second"]
    lines += [f"{name:<32}{rate / 1e6:>12.1f} M tokens/s" for name, rate in rates.items()]
    lines += [f"{name:<32}{value:>16,}" for name, value in summary["memory"].items()]
    for name, starts in summary["seconds_to_first_batch"].items():
        text = ", ".join(f"{1e3 * s:.1f} ms from step {step}" for step, s in starts.items())
        lines.append(f"{name}: first batch after {text}")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
