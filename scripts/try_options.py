"""Tries options of XLA on the training step of a config, on the devices at hand.

    python scripts/try_options.py --config=olmo_nano --try=xla_cpu_enable_fast_math=true
    python scripts/try_options.py --config=olmo2_1b --config.train.batch_size=32 \\
        --try=xla_gpu_enable_latency_hiding_scheduler=true,false \\
        --try=xla_gpu_enable_triton_gemm=false+xla_gpu_autotune_level=4,5

A `--try` is one option with its values, or several options that are set together, joined by "+".
Each combination of values is compiled as `train` would compile it with these fields of
`train.compiler_options`. Then all programs take turns, so that other work slows all alike; a turn
of one is paired with the default's in the same round. The ratio of their times has a 95 % interval
by Student's t over the rounds; "faster" and "slower" are corrected for the number of trials (Holm).

Prints a table: seconds, ratio, memory as compiled, and by how much loss and gradient norm of one
step differ from the default's; below each row, what differs in the audit of the compiled program.
"""

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import numpy as np
from jax.errors import JaxRuntimeError

from jaxpretrain.config.command import Parser, run, split_overrides
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.files import load_config
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.config.serialize import finite
from jaxpretrain.devices.chips import GIB
from jaxpretrain.devices.memory import is_out_of_memory
from jaxpretrain.devices.startup import use_huge_pages, use_most_memory
from jaxpretrain.display.progress import Progress, say
from jaxpretrain.display.wording import Row, count_of, format_number, format_table
from jaxpretrain.planning.audit import Audit, audit
from jaxpretrain.planning.auto import choose
from jaxpretrain.planning.console import compilation
from jaxpretrain.planning.machines import count_hosts
from jaxpretrain.planning.search import open_choices
from jaxpretrain.sweeps.statistics import SIGNIFICANT, Difference, holm, paired_difference
from jaxpretrain.train.experiment import Resolved, resolve
from jaxpretrain.train.program import Program, make_program, measured
from jaxpretrain.train.step import TrainState

DEFAULT = "default"
HEAD: Row = ("options", "s a step", "of the default's", "95 % interval", "", "GiB", "differs by")
_OPTIONS = "train.compiler_options"


@dataclass
class Variant:
    """A step that is compiled with some options, and the seconds of its turns."""

    name: str
    program: Program
    step: jax.stages.Compiled
    audit: Audit
    compile_seconds: float
    results: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Loss and gradient norm of one step from a fresh state."""
    seconds: list[float] = field(default_factory=list)
    """Seconds of a step, the median of each turn."""

    @property
    def overrides(self) -> list[str]:
        """The flags of `train` that set the options."""
        named = [] if self.name == DEFAULT else self.name.split("+")
        return [f"--config.{_OPTIONS}.{option}" for option in named]


def main(argv: list[str]) -> None:
    """Prints a table, or one JSON document and the table on standard error."""
    rest, overrides = split_overrides(argv)
    flags = parse(rest)
    names = [DEFAULT, *(name for text in flags.tried for name in combinations(text))]
    experiment = resolve(apply_overrides(load_config(flags.config), overrides))
    if open_choices(experiment):
        experiment, why = choose(
            experiment, lambda x, done: say(compilation(x, done, jax.device_count()))
        )
        say(why)
    variants, refused = compile_all(experiment, dict.fromkeys(names))
    if len(variants) == 1:
        raise InputError("nothing to compare: no option could be compiled")
    time_all(variants, flags.rounds, flags.steps)
    document = make_document(flags, variants, refused)
    table = "\n".join(make_table(document))
    print(table, file=sys.stderr if flags.json else sys.stdout)
    if flags.json:
        print(json.dumps(finite(document)))


def parse(argv: list[str]) -> argparse.Namespace:
    """Returns the flags; `--config.PATH=VALUE` is read apart."""
    parser = Parser(prog="python scripts/try_options.py", description=__doc__)
    add = parser.add_argument
    add("--config", required=True, help="packaged config or FILE.py; --config.PATH=VALUE sets")
    add(
        "--try",
        dest="tried",
        action="append",
        required=True,
        metavar="NAME=VALUE[,VALUE]",
        help="option of XLA and its values; +NAME=VALUE sets a further one with it",
    )
    add("--rounds", type=int, default=20, help="turns of each program")
    add("--steps", type=int, default=5, help="steps of a turn, whose median counts")
    add("--json", action="store_true", help="print one JSON document on standard output")
    flags = parser.parse_args(argv)
    for name, least in {"rounds": 2, "steps": 1}.items():
        if (value := getattr(flags, name)) < least:
            parser.error(f"--{name}={value}: must be {least} or more")
    return flags


def combinations(text: str) -> Iterator[str]:
    """Yields "NAME=VALUE", joined by "+", for each combination of the values of a --try."""
    choices = []
    for part in text.split("+"):
        name, _, values = part.partition("=")
        if not name or not all(values.split(",")):
            raise InputError(f"--try={text}: write NAME=VALUE, or NAME=VALUE,VALUE")
        choices.append([f"{name}={value}" for value in values.split(",")])
    yield from ("+".join(chosen) for chosen in itertools.product(*choices))


def compile_all(
    experiment: Resolved, names: Sequence[str] | dict[str, Any]
) -> tuple[list[Variant], dict[str, str]]:
    """Returns the compiled variants, the default first, and why the others were refused.

    Raises InputError where the default itself cannot be compiled.
    """
    variants, refused = [], {}
    with Progress(len(names), "compiled", stays=False) as progress:
        for number, name in enumerate(names, 1):
            try:
                variants.append(compile_variant(experiment, name))
            except InputError as error:
                if name == DEFAULT:
                    raise
                refused[name] = str(error)
                progress.message(f"{name} is left out: {error}")
            else:
                seconds = variants[-1].compile_seconds
                progress.message(f"compiled with {name} ({seconds:.1f} s)")
            progress.update(number)
    return variants, refused


def compile_variant(experiment: Resolved, name: str) -> Variant:
    """Compiles the step with the options of a name; InputError: XLA does not take one.

    InputError, too, where the devices have no room for it.
    """
    options = () if name == DEFAULT else (option.partition("=") for option in name.split("+"))
    overrides = [(f"{_OPTIONS}.{option}", value) for option, _, value in options]
    program = make_program(apply_overrides(experiment, overrides), jax.devices())
    start = time.perf_counter()
    try:
        step = program.compile()
    except JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"the step does not fit: {str(error).splitlines()[0]}") from error
    seconds = time.perf_counter() - start
    return Variant(name, program, step, audit(program, step, count_hosts(jax.devices())), seconds)


def time_all(variants: Sequence[Variant], rounds: int, steps: int) -> None:
    """Lets the variants take turns, and keeps the seconds of each.

    One state passes through all of them, so that memory holds one. A first step of each, from a
    fresh state, is not timed. The order moves on by one each round.
    """
    batch = random_batch(variants[0].program)
    state: TrainState | None = None
    for variant in variants:
        state = None  # before there is another
        state, metrics = variant.step(variant.program.create_state(), batch)
        variant.results = np.array([metrics["loss"], metrics["grad_norm"]], float)
    with Progress(rounds, "round") as progress:
        for number in range(rounds):
            place = number % len(variants)
            for variant in (*variants[place:], *variants[:place]):
                seconds = []
                for _ in range(steps):
                    start = time.perf_counter()
                    state, _ = jax.block_until_ready(variant.step(state, batch))
                    seconds.append(time.perf_counter() - start)
                variant.seconds.append(statistics.median(seconds))
            progress.update(number + 1, {})


def random_batch(program: Program) -> dict[str, jax.Array]:
    """Returns a batch of noise on the devices."""
    rng = np.random.default_rng(0)
    limits = program.model.input_limits()
    batch = {
        name: rng.integers(limits.get(name, 2), size=spec.shape).astype(spec.dtype)
        for name, spec in program.batch.items()
    }
    return program.layout.put(batch, program.experiment.train.batch_size)


def make_document(
    flags: argparse.Namespace, variants: Sequence[Variant], refused: dict[str, str]
) -> dict[str, Any]:
    """Returns the JSON document: the default, each trial beside it, and what was refused."""
    default, *tried = variants
    logarithms = [np.log(variant.seconds) for variant in variants]
    differences = [
        paired_difference(times.tolist(), logarithms[0].tolist(), comparisons=len(tried))
        for times in logarithms[1:]
    ]
    chances = holm([difference.p for difference in differences])
    return {
        "config": flags.config,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "rounds": flags.rounds,
        "steps": flags.steps,
        "default": facts(default),
        "tried": [
            facts(variant)
            | compared(difference, chance)
            | {
                "results_differ_by": relative(variant.results, default.results),
                "audit_changes": changes(default.audit, variant.audit),
            }
            for variant, difference, chance in zip(tried, differences, chances, strict=True)
        ],
        "refused": refused,
    }


def facts(variant: Variant) -> dict[str, Any]:
    """Returns what is known of a variant alone."""
    return {
        "options": variant.name,
        "overrides": variant.overrides,
        "step_seconds": statistics.median(variant.seconds),
        "step_seconds_min": min(variant.seconds),
        "compile_seconds": variant.compile_seconds,
        "memory_bytes": measured(variant.program, variant.step).total,
        "loss": float(variant.results[0]),
        "grad_norm": float(variant.results[1]),
    }


def compared(difference: Difference, chance: float) -> dict[str, Any]:
    """Returns the ratio to the default's time; the difference is that of logarithms."""
    is_seen = chance < SIGNIFICANT
    return {
        "ratio": math.exp(difference.mean),
        "ratio_low": math.exp(difference.low),
        "ratio_high": math.exp(difference.high),
        "verdict": ("faster" if difference.mean < 0 else "slower") if is_seen else "not seen",
        "smallest_seen": math.expm1(difference.smallest),
    }


def relative(numbers: np.ndarray, default: np.ndarray) -> float:
    """Returns the largest relative difference."""
    return float(np.max(np.abs(numbers / default - 1)))


def changes(before: Audit, after: Audit) -> dict[str, tuple[float, float]]:
    """Returns the counts of two audits that differ, by name."""
    counts = [counted(before), counted(after)]
    names = dict.fromkeys(itertools.chain(*counts))
    pairs = {name: (counts[0].get(name, 0), counts[1].get(name, 0)) for name in names}
    return {name: (a, b) for name, (a, b) in pairs.items() if a != b}


def counted(found: Audit) -> dict[str, int | float]:
    """Returns the counts of an audit by name, communication by its kind."""
    counts = {name: n for name, n in asdict(found).items() if isinstance(n, int | float)}
    for c in found.collectives:
        across = ", across hosts" if c.crosses_hosts else ""
        waits = "behind products" if c.overlapped else "waited for"
        counts[f"bytes of {c.kind} {c.dtype}, {waits}{across}"] = c.bytes
    return counts


def make_table(document: dict[str, Any]) -> Iterator[str]:
    """Yields the lines of the table; below a row, what differs in its audit."""
    default, tried = document["default"], document["tried"]
    rows: list[Row] = [HEAD, cells(default), *map(cells, tried)]
    lines = iter(format_table(rows))
    rounds, steps = count_of(document["rounds"], "round"), count_of(document["steps"], "step")
    where = f"{document['config']} on {document['device']}, jax {document['jax']}"
    yield f"{where}: medians of {rounds} of {steps}"
    yield from itertools.islice(lines, 2)
    for entry, line in zip(tried, lines, strict=True):
        yield line
        for name, (before, after) in entry["audit_changes"].items():
            yield f"  {name}: {format_number(before)} -> {format_number(after)}"
    smallest = max(entry["smallest_seen"] for entry in tried)
    yield f"a difference of {smallest:.1%} would be seen in four of five such trials"
    for entry in tried:
        if entry["verdict"] == "faster":
            yield f"faster: {' '.join(entry['overrides'])}"
    for name, reason in document["refused"].items():
        yield f"left out: {name}: {reason}"


def cells(entry: dict[str, Any]) -> Row:
    """Returns the cells of a row of the table."""
    own = [entry["options"], f"{entry['step_seconds']:.4g}"]
    memory = f"{entry['memory_bytes'] / GIB:.2f}"
    if "ratio" not in entry:
        return [*own, "", "", "", memory, ""]
    interval = f"{entry['ratio_low']:.3f} to {entry['ratio_high']:.3f}"
    differs = f"{entry['results_differ_by']:.1e}"
    return [*own, f"{entry['ratio']:.3f}", interval, entry["verdict"], memory, differs]


if __name__ == "__main__":
    use_huge_pages()  # as training does
    use_most_memory()
    run(main)
