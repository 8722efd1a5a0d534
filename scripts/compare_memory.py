"""Compares estimated memory with the compiled memory, for a machine that need not be there.

python scripts/compare_memory.py [--target=h100-80gb] [--json]

Compiles the training steps of published sizes for one to eight such devices, in some minutes. It
needs the compiler of the target (jaxpretrain[plan-gpu] or jaxpretrain[plan-tpu]).
"""

import dataclasses
import json
from typing import Any

from jaxpretrain.config.command import Parser, run
from jaxpretrain.config.errors import InputError
from jaxpretrain.devices.startup import prepare_environment

# Size, devices, microbatch, accumulation, tokens or pixels a side, fields of the model, mesh.
CASES: tuple[tuple[str, int, int, int, int, dict[str, Any], dict[str, int]], ...] = (
    *(("olmo_7b", 8, 2, 1, 2048, {"remat": r}, {}) for r in ("full", "attention", "dots", "none")),
    ("olmo_7b", 8, 8, 1, 2048, {}, {}),
    ("olmo_7b", 8, 4, 4, 2048, {}, {}),
    ("olmo_7b", 8, 4, 1, 2048, {}, {"tensor": 2}),
    *(("olmo_1b", 1, 8, 1, 2048, {"remat": r}, {}) for r in ("full", "attention", "dots", "none")),
    ("olmo_1b", 1, 4, 1, 2048, {"remat": "none", "scan_layers": False}, {}),
    ("olmo_1b", 1, 8, 1, 2048, {"attention": "xla_blocks"}, {}),
    ("olmo2_1b", 8, 4, 1, 4096, {}, {}),
    ("olmo2_7b", 8, 2, 1, 4096, {"remat": "attention"}, {"replica": 2}),
    ("olmo2_13b", 8, 1, 1, 4096, {}, {}),
    ("olmo3_7b", 8, 1, 1, 8192, {}, {}),
    ("olmo_150m", 1, 16, 1, 2048, {}, {}),
    *(("sapiens_0_3b", 1, 16, 1, 1024, {"remat": r}, {}) for r in ("full", "dots", "none")),
    ("sapiens_1b", 8, 16, 2, 1024, {}, {}),
    ("sapiens_2b", 8, 16, 1, 1024, {}, {}),
)


def main(argv: list[str]) -> None:
    """Prints a table, or one JSON document."""
    parser = Parser(prog="python scripts/compare_memory.py", description=__doc__)
    parser.add_argument("--target", default="h100-80gb", help="a kind of GPU, without a number")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    flags = parser.parse_args(argv)
    prepare_environment(f"{flags.target}:8")
    if not flags.json:
        print("| step | compiled GB | estimated GB | error |")
        print("| --- | --- | --- | --- |")
    rows = []
    for case in CASES:
        rows.append(compare(flags.target, case))
        if not flags.json:
            row = rows[-1]
            print(
                f"| {row['step']} | {row['compiled'] / 1e9:.2f} | {row['estimated'] / 1e9:.2f} "
                f"| {row['error']:+.1%} |",
                flush=True,
            )
    if flags.json:
        print(json.dumps(rows))
    else:
        sizes = [abs(row["error"]) for row in rows]
        print(f"\nmean {sum(sizes) / len(sizes):.1%}, largest {max(sizes):.1%}")


def compare(target_name: str, case: Any) -> dict[str, Any]:
    """Compiles and estimates a case; returns the bytes of a device and the error."""
    from jaxpretrain.planning.compiled import compile_step
    from jaxpretrain.planning.estimates import estimate_memory
    from jaxpretrain.planning.machines import open_machine, parse_target
    from jaxpretrain.train.program import make_program

    name, num_devices, microbatch, accumulation, size, overrides, mesh = case
    target = parse_target(f"{target_name}:{num_devices}")
    machine = open_machine(target, "bfloat16")
    if not machine.compiles:
        raise InputError(f"no compiler for {target_name} here")
    experiment = make_experiment(case)
    compiled = compile_step(experiment, machine)
    estimated = estimate_memory(make_program(experiment, machine.devices))
    changes = ", ".join(f"{k} {v}" for k, v in (overrides | mesh).items())
    step = f"{name}, {size:,}, {num_devices} x {microbatch} x {accumulation}"
    return {
        "step": f"{step}{', ' if changes else ''}{changes}",
        "compiled": compiled.total,
        "estimated": estimated.total,
        "parts": dataclasses.asdict(estimated),
        "error": estimated.total / compiled.total - 1,
    }


def make_experiment(case: Any) -> Any:
    """Returns the resolved experiment of a case."""
    from jaxpretrain.data.images.images import ImageData
    from jaxpretrain.data.text.text import TextData
    from jaxpretrain.models.olmo.variants import OLMO_SIZES
    from jaxpretrain.models.sapiens.variants import SAPIENS_SIZES
    from jaxpretrain.optim.optimizers import AdamW
    from jaxpretrain.parallel.mesh import Mesh
    from jaxpretrain.train.experiment import Experiment, Train, resolve

    name, num_devices, microbatch, accumulation, size, overrides, mesh = case
    is_text = name in OLMO_SIZES
    model = OLMO_SIZES[name] if is_text else SAPIENS_SIZES[name]
    num_data = num_devices // mesh.get("tensor", 1)
    return resolve(
        Experiment(
            model=dataclasses.replace(model, **overrides),
            data=TextData(seq_len=size) if is_text else ImageData(size=size),
            optim=AdamW(),
            train=Train(
                duration="1000 steps",
                batch_size=num_data * microbatch * accumulation,
                microbatch_size=microbatch,
            ),
            mesh=Mesh(**mesh),
        )
    )


if __name__ == "__main__":
    run(main)
