"""Compares predicted with real memory of training steps on the accelerator at hand; prints JSON.

Each combination of model, microbatch and remat runs two steps in a process of its own, because a
device reports the peak of the whole process. CPUs report none: there `measured_gib` is null.
"""

import json
import subprocess
import sys

from jaxpretrain.config.command import Parser, run

# Model, tokens or pixels, microbatch, remat policy. Each fits a device of 80 GB.
COMBINATIONS = (
    ("olmo_150m", 2048, 16, "none"),
    ("olmo_150m", 2048, 64, "full"),
    ("olmo_300m", 2048, 16, "attention"),
    ("olmo_1b", 2048, 4, "dots"),
    ("olmo_1b", 2048, 16, "full"),
    ("olmo2_1b", 4096, 4, "full"),
    ("sapiens_0_3b", 1024, 32, "full"),
    ("sapiens_0_3b", 1024, 16, "dots"),
)
SMALL = (("olmo_20m", 256, 2, "none"), ("olmo_20m", 256, 8, "full"))


def main(argv: list[str]) -> None:
    """Prints one JSON document: rows with predicted and measured GiB, and the error."""
    parser = Parser(prog="python scripts/bench_memory.py", description=__doc__)
    parser.add_argument("--small", action="store_true", help="models for a laptop")
    parser.add_argument("--one", help="MODEL,LENGTH,MICROBATCH,REMAT to measure in this process")
    flags = parser.parse_args(argv)
    if flags.one:
        name, length, microbatch, remat = flags.one.split(",")
        print(json.dumps(_measure(name, int(length), int(microbatch), remat)))
        return
    rows = []
    for combination in SMALL if flags.small else COMBINATIONS:
        one = f"--one={','.join(map(str, combination))}"
        done = subprocess.run([sys.executable, __file__, one], capture_output=True, text=True)
        rows.append(
            json.loads(done.stdout)
            if done.returncode == 0
            else {"step": one, "failed": done.stderr.strip().splitlines()[-1:]}
        )
        print(rows[-1], file=sys.stderr)
    print(json.dumps({"rows": rows}))


def _measure(name: str, length: int, microbatch: int, remat: str) -> dict[str, object]:
    from jaxpretrain.devices.startup import use_most_memory

    use_most_memory()
    import jax
    import numpy as np

    from jaxpretrain.devices.memory import peak_memory
    from jaxpretrain.train.program import make_program, measured

    # With two microbatches, accumulation is measured too.
    program = make_program(_experiment(name, length, microbatch, remat), jax.devices()[:1])
    step = program.compile()
    predicted = measured(program, step).total
    state = program.create_state()
    batch = {key: np.zeros(spec.shape, spec.dtype) for key, spec in program.batch.items()}
    for _ in range(2):
        placed = program.layout.put(batch, 2 * microbatch)
        state, metrics = step(state, placed)
        jax.block_until_ready(metrics)
    peak = peak_memory().get("device")
    return {
        "step": f"{name}, {length}, 2 x {microbatch}, remat {remat}",
        "device": jax.devices()[0].device_kind,
        "predicted_gib": predicted / 2**30,
        "measured_gib": None if peak is None else peak / 2**30,
        "error": None if peak is None else predicted / peak - 1.0,
    }


def _experiment(name: str, length: int, microbatch: int, remat: str):
    from dataclasses import replace

    from jaxpretrain.data.images.image_sources import Folder
    from jaxpretrain.data.images.images import ImageData
    from jaxpretrain.data.text.text import TextData
    from jaxpretrain.models.olmo.variants import OLMO_SIZES
    from jaxpretrain.models.sapiens.variants import SAPIENS_SIZES
    from jaxpretrain.optim.optimizers import AdamW
    from jaxpretrain.train.experiment import Experiment, Train, resolve

    is_image = name in SAPIENS_SIZES
    model = replace((SAPIENS_SIZES if is_image else OLMO_SIZES)[name], remat=remat)
    data = ImageData(source=Folder(), size=length) if is_image else TextData(seq_len=length)
    train = Train(duration="10 steps", batch_size=2 * microbatch, microbatch_size=microbatch)
    return resolve(Experiment(model, data, AdamW(), train))


if __name__ == "__main__":
    run(main)
