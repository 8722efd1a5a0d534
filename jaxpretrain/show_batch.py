"""Shows the batch of a step, or the steps that use an example.

    jaxpretrain show_batch --config=olmo_nano --step=500 --rows=2
    jaxpretrain show_batch --config=olmo_nano --find=8633

Prints files, offsets and text. Set the fields of the run as in training (--config.PATH=VALUE).
"""

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxpretrain.config.command import Parser, run, split_overrides
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.files import load_config
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.config.paths import as_local_path
from jaxpretrain.data.skip import parse_ranges, positions, sample_at
from jaxpretrain.data.text.text import Row, TrainingSequences
from jaxpretrain.data.token_files.tokenizer import encoder, read_tokenizer
from jaxpretrain.display.progress import activity

if TYPE_CHECKING:
    from jaxpretrain.train.experiment import Resolved


Decode = Callable[[list[int]], str]


def main(argv: list[str]) -> None:
    """Runs the command."""
    rest, overrides = split_overrides(argv)
    flags = make_parser().parse_args(rest)
    config = apply_overrides(load_config(flags.config), overrides)

    with activity("loading JAX"):  # after the flags, and not silently
        from jaxpretrain.train.experiment import resolve

    experiment = resolve(config)
    shown = _batch(experiment, flags) if flags.find is None else _uses(experiment, flags.find)
    document, lines = shown
    print(json.dumps(document, ensure_ascii=False) if flags.json else "\n".join(lines))


def make_parser() -> Parser:
    """Returns the parser of the command."""
    usage = "%(prog)s --config=... (--step=N | --find=INDEX) [FLAGS]"
    parser = Parser(prog="jaxpretrain show_batch", usage=usage, description=__doc__)
    add = parser.add_argument
    add(
        "--config",
        required=True,
        help="packaged config or FILE.py; --config.PATH=VALUE sets fields",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--step", type=int, help="show the batch of update N, from 1")
    what.add_argument("--find", metavar="INDEX", help="find an example; SOURCE:INDEX in a mixture")
    add("--rows", type=int, default=8, help="number of sequences to show")
    add("--tokens", type=int, default=32, help="number of tokens per sequence to show as text")
    add("--tokenizer", type=as_local_path, help="tokenizer.json, for raw token files")
    add("--eos_id", type=int, help="token that ends documents, for raw token files")
    add("--json", action="store_true", help="print one JSON document on standard output")
    return parser


def _batch(experiment: "Resolved", flags: Namespace) -> tuple[dict[str, object], list[str]]:
    """Returns the batch of a step as a document, and two or three lines a row."""
    last = experiment.timeline.num_steps
    if not 1 <= flags.step <= last:
        raise InputError(f"--step={flags.step}: the run has steps 1 to {last:,}")
    samples = experiment.timeline.pace.samples(flags.step)
    data = _open(experiment)
    shown = np.arange(samples.start, min(samples.stop, samples.start + flags.rows))
    eos_id = data.eos_id if flags.eos_id is None else flags.eos_id
    decode = _decoder(flags.tokenizer or data.tokenizer_path, flags.tokens)
    shown = positions(shown, parse_ranges(experiment.data.skip, "data.skip"))
    rows = read_rows(data, shown, eos_id=eos_id, decode=decode)
    document: dict[str, object] = {
        "step": flags.step,
        "samples": (samples.start, samples.stop),
        "seq_len": experiment.data.units_per_example()[1],
        "rows": [asdict(row) for row in rows],
    }
    title = (
        f"step {flags.step:,}: samples {samples.start:,} to {samples.stop - 1:,} of the run,"
        f" {len(samples):,} sequences of {document['seq_len']:,} tokens"
    )
    described = (line for number, row in enumerate(rows) for line in _describe_row(number, row))
    return document, [title, *described]


def _uses(experiment: "Resolved", where: str) -> tuple[dict[str, object], list[str]]:
    """Returns the steps that train on an example as a document, and a line a step."""
    source, colon, index = where.rpartition(":")
    if not index.isdecimal():
        raise InputError(f"--find={where}: expected INDEX, or SOURCE:INDEX of a mixture")
    pace = experiment.timeline.pace
    num_samples = int(pace.examples(experiment.timeline.num_steps))
    uses, ranges = [], parse_ranges(experiment.data.skip, "data.skip")
    end = int(positions(np.array(num_samples - 1), ranges)) + 1 if num_samples else 0
    for position in _open(experiment).find(int(index), end, source if colon else None):
        if (sample := sample_at(position, ranges)) is None:
            continue
        step = int(pace.steps(sample)) + 1
        row = sample - pace.samples(step).start
        uses.append({"step": step, "row": row, "sample": sample})
    lines = ["step {step:,}, row {row:,} (sample {sample:,})".format(**use) for use in uses]
    none = f"the run does not train on {where}"
    return {"example": where, "uses": uses}, lines or [none]


def read_rows(
    data: TrainingSequences, samples: np.ndarray, *, eos_id: int | None, decode: Decode | None
) -> list[Row]:
    """Returns the samples, int64 [n]; `decode` makes the text of a row."""
    batch = data.batch(samples)
    masked = (~batch["mask"]).sum(axis=1) if "mask" in batch else np.zeros(len(samples), int)
    return [
        replace(
            row,
            documents=None if eos_id is None else documents(tokens, eos_id),
            num_masked=num_masked,
            text=decode(tokens.tolist()) if decode else None,
        )
        for row, tokens, num_masked in zip(
            data.locate(samples), batch["tokens"], masked.tolist(), strict=True
        )
    ]


def documents(tokens: np.ndarray, eos_id: int) -> list[tuple[int, int]]:
    """Returns (first, after the last) of each document with its EOS in a sequence [t]."""
    ends = [*(np.flatnonzero(tokens == eos_id) + 1).tolist(), len(tokens)]
    starts = [0, *ends]
    return [(start, end) for start, end in zip(starts, ends, strict=False) if start < end]


def _open(experiment: "Resolved") -> TrainingSequences:
    """Opens the training data. Sizes of files are compared with the manifest, not their hashes."""
    example = experiment.data.example_spec()
    limits = experiment.model.build(example, platform="cpu").input_limits()
    data = experiment.data.unhashed().open(seed=experiment.seed, limits=limits)
    if not isinstance(data, TrainingSequences):
        raise InputError(f"the data holds {', '.join(example)}, no text")
    return data


def _decoder(path: Path | None, num_tokens: int) -> Decode | None:
    if path is None:
        return None
    tokenizer = encoder(read_tokenizer(path), path)
    return lambda ids: tokenizer.decode(ids[:num_tokens], skip_special_tokens=False)


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
