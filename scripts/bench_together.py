"""Times the seeds of a sweep as one program against one process for each.

    python scripts/bench_together.py --config=configs/olmo_nano.py --runs=3,6
    python scripts/bench_together.py --config=configs/olmo_nano.py --target=h200

Together: one program steps all runs, `jax.vmap` of the training step over state and batch. Apart: a
process steps one run, on all cores (the sweep's `--jobs=1`) or beside a second one, each on half of
the cores (`--jobs=2`). All take turns, so that other work slows all alike. Prints JSON: seconds in
which every run has made a step, and `speedup`, the best way apart over together.

With `--target`, nothing is timed: the step is compiled for an absent GPU, alone and together, and
its kernels are counted.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxpretrain.config.command import Parser, run, split_overrides
from jaxpretrain.devices.startup import prepare_environment, use_huge_pages


def main(argv: list[str]) -> None:
    """Prints one JSON document."""
    rest, overrides = split_overrides(argv)
    flags = parse(rest)
    counts = [int(count) for count in flags.runs.split(",")]
    if flags.child:
        use_huge_pages()  # as in training
        serve(flags, overrides, counts[0])
    elif flags.target:
        prepare_environment(flags.target)
        print(json.dumps(compiled(flags, overrides, counts), indent=2))
    else:
        print(json.dumps(timed(flags, argv, counts), indent=2))


def parse(argv: list[str]) -> argparse.Namespace:
    """Returns the flags; `--config.PATH=VALUE` is read apart."""
    parser = Parser(prog="python scripts/bench_together.py", description=__doc__)
    parser.add_argument("--config", default="configs/olmo_nano.py")
    parser.add_argument("--runs", default="3,6", help="numbers of runs, with commas")
    parser.add_argument("--target", help="an absent GPU to compile for, such as h200")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a turn")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def timed(flags: argparse.Namespace, argv: Sequence[str], counts: Sequence[int]) -> dict[str, Any]:
    """Returns the median seconds in which every run makes a step, by the way they are run."""
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    alone = [Stepper(argv, 1, cores)]
    pair = [Stepper(argv, 1, cores[:half]), Stepper(argv, 1, cores[half:])] if half else []
    together = {count: [Stepper(argv, count, cores)] for count in counts}
    groups = [alone, pair, *together.values()]
    seconds: list[list[float]] = [[] for _ in groups]
    for _ in range(flags.rounds):
        for place, group in enumerate(groups):
            for stepper in group:
                stepper.begin(flags.steps)
            taken = [stepper.take() for stepper in group]
            seconds[place] += [max(steps) for steps in zip(*taken, strict=True)]
    medians = [statistics.median(part) if part else None for part in seconds]
    found = {}
    for count, (one, two, all_of_them) in zip(
        counts, ((medians[0], medians[1], median) for median in medians[2:]), strict=True
    ):
        assert one is not None and all_of_them is not None
        apart = {"jobs_1": count * one}
        if two is not None:
            apart["jobs_2"] = -(-count // 2) * two
        found[str(count)] = {
            **apart,
            "together": all_of_them,
            "speedup": round(min(apart.values()) / all_of_them, 3),
        }
    for stepper in (stepper for group in groups for stepper in group):
        stepper.close()
    return {"cores": len(cores), "config": flags.config, "seconds_by_runs": found}


@dataclass
class Stepper:
    """A process that steps some runs as one program, on some cores."""

    argv: Sequence[str]
    count: int
    cores: Sequence[int]

    def __post_init__(self) -> None:
        command = [sys.executable, __file__, *self.argv, "--child", f"--runs={self.count}"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, self.cores),
        )
        self.take()  # it has compiled

    def begin(self, steps: int) -> None:
        """Has the process make steps."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()

    def take(self) -> list[float]:
        """Returns the seconds of each step that was begun."""
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def serve(flags: argparse.Namespace, overrides: list[tuple[str, str]], count: int) -> None:
    """Makes as many steps as each line of standard input says, and prints their seconds."""
    import jax

    program, step = compile_step(flags, overrides, count, jax.devices()[:1])
    states = jax.jit(jax.vmap(program.init))(jax.numpy.arange(count))
    states = jax.tree.map(lambda x: x[0], states) if count == 1 else states
    batch = make_batch(program, count)
    states, _ = step(states, batch)
    print(json.dumps([]), flush=True)
    for line in sys.stdin:
        seconds = []
        for number in range(int(line) + 1):
            start = time.perf_counter()
            states, _ = jax.block_until_ready(step(states, batch))
            if number:  # the first one warms up
                seconds.append(time.perf_counter() - start)
        print(json.dumps(seconds), flush=True)


def compiled(
    flags: argparse.Namespace, overrides: list[tuple[str, str]], counts: Sequence[int]
) -> dict[str, Any]:
    """Returns kernels and memory of the step for an absent GPU, by the number of runs."""
    from jaxpretrain.planning.machines import open_machine, parse_target

    target = parse_target(flags.target)
    found = {}
    for count in (1, *counts):
        machine = open_machine(target, "float32")
        options = dict(machine.compiler_options)
        _, step = compile_step(flags, overrides, count, machine.devices[:1], options)
        text = step.as_text() or ""
        entry = text[text.rindex("\nENTRY") :]
        # What is a kernel or a call of a library in the program's main computation.
        kernels = len(re.findall(r"= .*? (?:fusion|custom-call|copy|dot|sort|reduce)\(", entry))
        memory: Any = step.memory_analysis()
        found[str(count)] = {
            "kernels": kernels,
            "kernels_per_run": round(kernels / count, 1),
            "gib": round((memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30, 3),
        }
    return {"target": target.name, "config": flags.config, "by_runs": found}


def compile_step(
    flags: argparse.Namespace,
    overrides: list[tuple[str, str]],
    count: int,
    devices: Sequence[Any],
    options: dict[str, Any] | None = None,
) -> tuple[Any, Any]:
    """Returns the program of one run, and the compiled step of `count` of them."""
    import jax

    from jaxpretrain.config.files import load_config
    from jaxpretrain.config.overrides import apply_overrides
    from jaxpretrain.train.experiment import resolve
    from jaxpretrain.train.program import make_program
    from jaxpretrain.train.step import make_train_step

    experiment = resolve(apply_overrides(load_config(flags.config), overrides))
    program = make_program(experiment, devices)
    step = make_train_step(
        program.model,
        program.optimizer,
        program.layout,
        program.num_microbatches,
        experiment.train,
        experiment.data.source_names(),
    )
    state, batch = program.state, program.batch
    if count > 1:
        step = jax.vmap(step)
        state, batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype, sharding=replicated(x)),
            (state, batch),
        )
    return program, jax.jit(step, donate_argnums=0).lower(state, batch).compile(options)


def replicated(x: Any) -> Any:
    """Returns the sharding that repeats an array on its one device."""
    import jax

    return jax.sharding.NamedSharding(x.sharding.mesh, jax.sharding.PartitionSpec())


def make_batch(program: Any, count: int) -> dict[str, Any]:
    """Returns random tokens, or images, for each of the runs."""
    import numpy as np

    random = np.random.default_rng(0)
    limits = program.model.input_limits()
    shape = () if count == 1 else (count,)
    return {
        name: random.integers(limits.get(name, 2), size=(*shape, *spec.shape)).astype(spec.dtype)
        for name, spec in program.batch.items()
    }


if __name__ == "__main__":
    run(main)
