"""The batches of a run, and where their examples are: the work of the command `show_batch`."""

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import Document
from jaxpretrain.data.skip import num_positions, parse_ranges, positions, sample_at
from jaxpretrain.data.text.text import SequencePlace, TrainingSequences
from jaxpretrain.data.token_files.tokenizer import encoder, read_tokenizer
from jaxpretrain.train.experiment import Experiment, Resolved, resolve

Decode = Callable[[list[int]], str]
"""A function from the ids of a sequence to the text that is shown of it."""


def show_batch(config: Experiment, flags: Namespace) -> tuple[Document, list[str]]:
    """Returns the batch of `--step`, or the uses of the example of `--find`: document and lines.

    Raises InputError where the run has no such step, the data no such example, or no text.
    """
    experiment = resolve(config)
    return _batch(experiment, flags) if flags.find is None else _uses(experiment, flags.find)


def _batch(experiment: Resolved, flags: Namespace) -> tuple[Document, list[str]]:
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
    document: Document = {
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


def _uses(experiment: Resolved, where: str) -> tuple[Document, list[str]]:
    """Returns the steps that train on an example as a document, and a line a step."""
    source, colon, index = where.rpartition(":")
    if not index.isdecimal():
        raise InputError(f"--find={where}: expected INDEX, or SOURCE:INDEX of a mixture")
    pace = experiment.timeline.pace
    num_samples = int(pace.examples(experiment.timeline.num_steps))
    uses, ranges = [], parse_ranges(experiment.data.skip, "data.skip")
    end = num_positions(num_samples, ranges)
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
) -> list[SequencePlace]:
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


def _open(experiment: Resolved) -> TrainingSequences:
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


def _describe_row(number: int, row: SequencePlace) -> list[str]:
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
