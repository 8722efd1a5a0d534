"""Times the data path on one core: tokens a second, the cost of an order, the time to start.

    python scripts/bench_data.py [--seq_len=2048] [--batch_size=32] [--seconds=2] [--json]

Writes token files of random ids to a temporary folder (256 MB, so that they stay in the page
cache) and reads whole batches of them on one core. This is the most that a training host can be
fed, with the model's own work elsewhere. The loader's thread shares the core with its consumer.
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
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from jaxpretrain.config.command import Parser, run
from jaxpretrain.data.loader import load_batches
from jaxpretrain.data.order.order import HashedOrder, OlmoOrder, OrderChoice
from jaxpretrain.data.text.mixture import Mixture, MixtureSource
from jaxpretrain.data.text.text import TextData
from jaxpretrain.data.token_files.masks import InstanceFilter

NUM_FILES, FILE_TOKENS = 16, 2**23
VOCAB_SIZE = 50_280
ORDERS: dict[str, OrderChoice] = {"olmo": OlmoOrder(), "hashed": HashedOrder()}


def main(argv: list[str]) -> None:
    """Prints a table, or one JSON document."""
    flags = _flags(argv)
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    with tempfile.TemporaryDirectory() as folder:
        _write_files(Path(folder))
        configs = _configs(folder, flags.seq_len)
        summary = {
            "machine": f"{_cpu()}, core {core}",
            "load_average": round(os.getloadavg()[0], 1),  # of all programs
            "versions": {name: version(name) for name in ("numpy", "grain")},
            "python": platform.python_version(),
            "batch": [flags.batch_size, flags.seq_len],
            "orders": _orders(folder),  # first: the children must not inherit threads
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
    """Writes two sources with half of the files each."""
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
    plain = {
        name: TextData(root=folder, seq_len=seq_len, order=order) for name, order in ORDERS.items()
    }
    plain["olmo, instance filter"] = replace(plain["olmo"], instance_filter=InstanceFilter())
    mixed = {
        f"mixture, {name}": Mixture(sources, seq_len=seq_len, order=order)
        for name, order in ORDERS.items()
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
        _rate(read, seconds / 2)  # fills the page cache and does the first shuffle
        rates[f"{name}: read"] = per_batch * _rate(read, seconds)
        with load_batches(read, 0, 10**9) as batches:
            rates[f"{name}: loader"] = per_batch * _rate(lambda _, b=batches: next(b), seconds)
    return {name: round(rate) for name, rate in rates.items()}


def _rate(call: Callable[[int], object], seconds: float) -> float:
    """Returns the calls a second, the median of five stretches."""
    rates, step = [], 0
    for _ in range(5):
        first, start = step, time.perf_counter()
        while (passed := time.perf_counter() - start) < seconds / 5:
            call(step)
            step += 1
        rates.append((step - first) / passed)
    return statistics.median(rates)


def _starts(config: TextData | Mixture, batch_size: int) -> dict[str, float]:
    """Returns the seconds from the config to the loader's first batch, by the first step."""
    seconds = {}
    for step in (0, 10**3, 10**6):
        start = time.perf_counter()
        data = config.open(seed=0, limits={"tokens": VOCAB_SIZE})
        first = step * batch_size + np.arange(batch_size)
        with load_batches(lambda _, d=data, f=first: d.batch(f), step, 10**9) as batches:
            next(batches)
            seconds[f"{step:,}"] = round(time.perf_counter() - start, 4)
    return seconds


def _orders(folder: str) -> dict[str, dict[str, float]]:
    """Returns the CPU seconds, memory and mapped bytes of each order, in a process of its own."""
    os.environ["JAXPRETRAIN_CACHE"] = f"{folder}/cache"
    return {
        "hashed, 1e9 sequences": _cost("hashed", 10**9),
        "olmo, 9e6 sequences, in memory": _cost("olmo", 9 * 10**6),
        "olmo, 1e8 sequences, built": _cost("olmo", 10**8),
        "olmo, 1e8 sequences, mapped": _cost("olmo", 10**8),
    }


def _cost(name: str, num_examples: int) -> dict[str, float]:
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def measure() -> None:
        before, start = _resident(), time.process_time()
        order = ORDERS[name].make(num_examples, seed=0)
        for first in np.linspace(0, num_examples - 100, 200, dtype=np.int64):
            order(first + np.arange(100))
        passed = time.process_time() - start
        anonymous, mapped = (now - then for now, then in zip(_resident(), before, strict=True))
        queue.put({"seconds": round(passed, 3), "bytes": anonymous, "mapped_bytes": mapped})

    process = context.Process(target=measure)
    process.start()
    process.join()
    return queue.get()


def _resident() -> tuple[int, int]:
    """Returns the bytes of memory, and the mapped bytes that lie in the page cache."""
    text = Path("/proc/self/status").read_text()
    kilobytes = dict(re.findall(r"(Rss\w+):\s+(\d+) kB", text))
    return int(kilobytes["RssAnon"]) * 1024, int(kilobytes["RssFile"]) * 1024


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
    for name, cost in summary["orders"].items():
        own, mapped = cost["bytes"] / 1e6, cost["mapped_bytes"] / 1e6
        lines.append(
            f"{name:<32}{cost['seconds']:>12.3f} s {own:>10.1f} MB, mapped {mapped:.1f} MB"
        )
    for name, starts in summary["seconds_to_first_batch"].items():
        text = ", ".join(f"{1e3 * s:.1f} ms from step {step}" for step, s in starts.items())
        lines.append(f"{name}: first batch after {text}")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
