"""Shows the batch of a step: python -m jaxpretrain.show_batch --config=FILE --step=N

Prints the files, offsets and text of the batch that update number N (from 1) uses. Or, with
--find=INDEX, the steps that use an example of the data (--find=SOURCE:INDEX in a mixture).
"""

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxpretrain.config.command import Parser, run, split_overrides
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.files import load_config
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.config.paths import as_path
from jaxpretrain.data.text.contents import Row, TrainingSequences, read_rows
from jaxpretrain.data.token_files.tokenizer import encoder, read_tokenizer

if TYPE_CHECKING:
    from jaxpretrain.train.resolved import Resolved


def main(argv: list[str]) -> None:
    """Runs the command."""
    rest, overrides = split_overrides(argv)
    flags = _parser().parse_args(rest)
    config = apply_overrides(load_config(flags.config), overrides)

    from jaxpretrain.train.resolved import resolve  # after the flags: it imports JAX

    experiment = resolve(config)
    shown = _batch(experiment, flags) if flags.find is None else _uses(experiment, flags.find)
    print(json.dumps(asdict(shown), ensure_ascii=False) if flags.json else shown.describe())


@dataclass(frozen=True)
class Batch:
    """The batch of a step."""

    step: int
    samples: tuple[int, int]
    """The first sample in the run, and the one after the last."""
    seq_len: int
    rows: list[Row]

    def describe(self) -> str:
        """Returns two or three lines a row."""
        start, stop = self.samples
        lines = [
            f"step {self.step:,}: samples {start:,} to {stop - 1:,} of the run, {stop - start:,}"
            f" sequences of {self.seq_len:,} tokens"
        ]
        for number, row in enumerate(self.rows):
            lines += _describe_row(number, row)
        return "\n".join(lines)


@dataclass(frozen=True)
class Use:
    """A step that trains on an example."""

    step: int
    row: int
    sample: int
    """Number of the sample in the run, from 0."""


@dataclass(frozen=True)
class Uses:
    """All steps of a run that train on an example."""

    example: str
    uses: list[Use]

    def describe(self) -> str:
        """Returns a line a step."""
        lines = [f"step {u.step:,}, row {u.row:,} (sample {u.sample:,})" for u in self.uses]
        return "\n".join(lines) or f"the run does not train on {self.example}"


def _parser() -> Parser:
    parser = Parser(prog="python -m jaxpretrain.show_batch", description=__doc__)
    add = parser.add_argument
    add("--config", required=True, help="FILE.py or FILE.py:ARGUMENT")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--step", type=int, help="number of the update, from 1")
    what.add_argument("--find", metavar="INDEX", help="an example, or SOURCE:INDEX of a mixture")
    add("--rows", type=int, default=8, help="sequences to show")
    add("--tokens", type=int, default=32, help="tokens of each to show as text")
    add("--tokenizer", type=as_path, help="tokenizer.json of raw files")
    add("--eos_id", type=int, help="token that ends each document of raw files")
    add("--json", action="store_true", help="one JSON document on standard output")
    return parser


def _batch(experiment: "Resolved", flags: Namespace) -> Batch:
    last = experiment.timeline.num_steps
    if not 1 <= flags.step <= last:
        raise InputError(f"--step={flags.step}: the run has steps 1 to {last:,}")
    samples = experiment.timeline.pace.samples(flags.step)
    data = _open(experiment)
    rows = read_rows(
        data,
        np.arange(samples.start, min(samples.stop, samples.start + flags.rows)),
        num_tokens=flags.tokens,
        eos_id=data.eos_id if flags.eos_id is None else flags.eos_id,
        decode=_decoder(flags.tokenizer or data.tokenizer_path),
    )
    seq_len = experiment.data.units_per_example()[1]
    return Batch(flags.step, (samples.start, samples.stop), seq_len, rows)


def _uses(experiment: "Resolved", where: str) -> Uses:
    source, colon, index = where.rpartition(":")
    if not index.isdecimal():
        raise InputError(f"--find={where}: expected INDEX, or SOURCE:INDEX of a mixture")
    pace = experiment.timeline.pace
    num_samples = int(pace.examples(experiment.timeline.num_steps))
    uses = []
    for sample in _open(experiment).find(int(index), num_samples, source if colon else None):
        step = int(pace.steps(sample)) + 1
        uses.append(Use(step, sample - pace.samples(step).start, sample))
    return Uses(where, uses)


def _open(experiment: "Resolved") -> TrainingSequences:
    """Opens the training data. Sizes of files are compared with the manifest, not their hashes."""
    example = experiment.data.example_spec()
    limits = experiment.model.build(example, platform="cpu").input_limits()
    data = experiment.data.unhashed().open(seed=experiment.seed, limits=limits)
    if not isinstance(data, TrainingSequences):
        raise InputError(f"the data holds {', '.join(example)}, no text")
    return data


def _decoder(path: Path | None) -> Callable[[list[int]], str] | None:
    if path is None:
        return None
    tokenizer = encoder(read_tokenizer(path), path)
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=False)


def _describe_row(number: int, row: Row) -> list[str]:
    source = "" if row.source is None else f" of {row.source}"
    start, stop = row.tokens
    lines = [
        f"row {number}: sample {row.sample:,}, example {row.example:,}{source}, epoch {row.epoch}",
        f"  {row.file}, tokens {start:,} to {stop - 1:,}",
    ]
    if row.documents is not None:
        parts = ", ".join(f"{start}-{stop - 1}" for start, stop in row.documents)
        lines[1] += f", documents {parts}"
    if row.num_masked:
        lines[1] += f", {row.num_masked:,} left out of the loss"
    if row.text is not None:
        lines.append(f"  {json.dumps(row.text, ensure_ascii=False)}")
    return lines


if __name__ == "__main__":
    run(main)
