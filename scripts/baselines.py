"""Compares a loss on a prepared dataset with simple models of the same text.

    python scripts/baselines.py --data=DIR [--split=validation] [--json]
    python scripts/baselines.py --run=WORKDIR

Unigram and bigram models (Witten-Bell, interpolated down to the uniform distribution) learn from
the train split and are measured on another split. gzip and xz compress the text of that split,
alone and followed by the train split. With --run, --data is by default the data of the run, the
last evaluation of the run is a row too, and the other rows go to baselines.json in its folder, from
where a report draws them.

For scale, on sotu_text with a BPE of 8192: unigram 1.99 bits per byte, bigram 1.44.
"""

import argparse
import gzip
import json
import lzma
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from jaxpretrain.config.command import Parser, run
from jaxpretrain.config.errors import InputError
from jaxpretrain.data.text.corpus import data_root
from jaxpretrain.data.text.text import TextData
from jaxpretrain.data.token_files.manifest import Manifest, load_manifest
from jaxpretrain.data.token_files.tokenizer import read_tokenizer, token_texts
from jaxpretrain.data.token_files.tokens import find_split
from jaxpretrain.display.progress import activity
from jaxpretrain.storage.files import write_atomically
from jaxpretrain.storage.jsonl import read_lines
from jaxpretrain.storage.run_documents import Baseline
from jaxpretrain.train.workdir import read_experiment

MAX_TOKENS = 10_000_000
"""The most tokens that are read of a split."""
MAX_TEXT_BYTES = 6_000_000
"""The most bytes that are compressed: xz takes a second for a megabyte."""


def main(argv: list[str]) -> None:
    """Prints a table, or one JSON document."""
    flags = _flags(argv)
    with activity("counting n-grams and compressing the text"):
        about, rows, name = _measure(flags)
    if flags.run:
        document = {**about, "rows": list(map(asdict, rows))}
        write_atomically(Path(flags.run) / "baselines.json", json.dumps(document, indent=2) + "\n")
        rows.append(_last_evaluation(Path(flags.run), name))
    if flags.json:
        print(json.dumps({**about, "rows": list(map(asdict, rows))}))
        return
    print("{data}, {split}: {num_tokens:,} tokens, {num_bytes:,} bytes".format(**about))
    print(_table(rows))
    if flags.run:
        print(_verdict(rows[:-1], rows[-1]))


def _measure(flags: argparse.Namespace) -> tuple[dict[str, Any], list[Baseline], str]:
    """Returns the facts about the held-out text, the baselines, and the name of the data."""
    root = _root(flags.data, flags.run)
    manifest = load_manifest(root)
    pieces = token_texts(read_tokenizer(root / manifest.tokenizer.file))
    if pieces is None:
        raise InputError(f"{root}: its tokenizer is not byte-level, so bytes are not known")
    train = _tokens(root, manifest, "train")
    held_out = _tokens(root, manifest, flags.split)
    if len(held_out) < 2:
        raise InputError(f"{root}: split {flags.split} holds no two tokens")
    num_bytes = sum(len(pieces[token]) for token in held_out[1:].tolist())
    rows = [
        Baseline(name, float(nats.mean()), float(nats.sum()) / math.log(2) / num_bytes)
        for name, nats in ngram_nats(train, held_out, manifest.vocab_size).items()
    ]
    text = _text(pieces, held_out)
    alone = text[:MAX_TEXT_BYTES]
    whole = (text + _text(pieces, train))[:MAX_TEXT_BYTES]
    sizes = [f"{len(part) / 1e6:.1f} MB" for part in (alone, whole)]
    rows += _compression({f"it alone, {sizes[0]}": alone, f"with train, {sizes[1]}": whole})
    about = {"data": str(root), "split": flags.split, "num_tokens": len(held_out)}
    return about | {"num_bytes": num_bytes}, rows, manifest.name


def ngram_nats(train: np.ndarray, held_out: np.ndarray, vocab_size: int) -> dict[str, np.ndarray]:
    """Returns the nats of each token of `held_out`, int [n], after the first: float64 [n - 1].

    Witten and Bell (1991): after a context with T different continuations in N occurrences,
    the lower-order model has weight T / (N + T).
    """
    context, target = held_out[:-1], held_out[1:]
    counts = np.bincount(train, minlength=vocab_size)
    num_types = np.count_nonzero(counts)
    unigram = (counts + num_types / vocab_size) / (len(train) + num_types)

    pairs, pair_counts = np.unique(train[:-1] * vocab_size + train[1:], return_counts=True)
    wanted = context * vocab_size + target
    places = np.searchsorted(pairs, wanted).clip(max=max(len(pairs) - 1, 0))
    seen = np.where(pairs[places] == wanted, pair_counts[places], 0)
    num_after = np.bincount(train[:-1], minlength=vocab_size)[context]
    types_after = np.bincount(pairs // vocab_size, minlength=vocab_size)[context]
    # A context that never occurred says nothing: there the unigram stands alone.
    lower_weight = np.where(num_after, types_after, 1)
    bigram = (seen + lower_weight * unigram[target]) / (num_after + lower_weight)
    return {
        "uniform": np.full(len(target), math.log(vocab_size)),
        "unigram": -np.log(unigram[target]),
        "bigram": -np.log(bigram),
    }


def _flags(argv: list[str]):
    parser = Parser(prog="python scripts/baselines.py", description=__doc__)
    parser.add_argument("--data", help="directory that prepare made; default: the run's")
    parser.add_argument("--split", default="validation", help="split to measure on")
    parser.add_argument("--run", help="workdir of a run that evaluated on the same data")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    return parser.parse_args(argv)


def _root(data: str | None, run: str | None) -> Path:
    """Returns the directory of token files."""
    if data:
        return Path(data)
    if not run:
        raise InputError("give --data=DIR, or --run=WORKDIR, or both")
    config = read_experiment(Path(run)).data
    if not isinstance(config, TextData):
        raise InputError(f"{run}: trained on no single text; give one with --data=DIR alone")
    return data_root(config)


def _tokens(root: Path, manifest: Manifest, split: str) -> np.ndarray:
    tokens = np.empty(0, np.int64)
    for file in find_split(root, manifest, split).files:
        dtype, missing = np.dtype(manifest.dtype).newbyteorder("<"), MAX_TOKENS - len(tokens)
        tokens = np.append(tokens, np.fromfile(root / file.name, dtype, missing))
    return tokens


def _text(pieces: list[bytes], tokens: np.ndarray) -> bytes:
    return b"".join(map(pieces.__getitem__, tokens.tolist()))


def _compression(texts: dict[str, bytes]) -> list[Baseline]:
    compressors: dict[str, Callable[[bytes], bytes]] = {
        "gzip -9": lambda text: gzip.compress(text, 9),
        "xz -9e": lambda text: lzma.compress(text, preset=9 | lzma.PRESET_EXTREME),
    }
    jobs = [
        (f"{name}, {of}", compress, text)
        for of, text in texts.items()
        for name, compress in compressors.items()
    ]

    def measure(job: tuple[str, Callable[[bytes], bytes], bytes]) -> Baseline:
        name, compress, text = job
        return Baseline(name, None, 8 * len(compress(text)) / len(text))

    with ThreadPoolExecutor() as threads:
        return list(threads.map(measure, jobs))


def _last_evaluation(workdir: Path, name: str) -> Baseline:
    path, key = workdir / "metrics.jsonl", f"eval/{name}/bits_per_byte"
    for line in reversed(read_lines(path)):
        if key in line:
            return Baseline(f"run, step {line['step']}", line.get(f"eval/{name}/loss"), line[key])
    raise InputError(f"{path}: holds no {key}; the run was not evaluated on this dataset")


def _table(rows: list[Baseline]) -> str:
    def cell(value: float | None) -> str:
        return f"{'-' if value is None else format(value, '.3f'):>12}"

    head = f"{'':<32}{'nats/token':>12}{'bits/byte':>12}"
    return "\n".join(
        [head, *(f"{r.name:<32}{cell(r.nats_per_token)}{cell(r.bits_per_byte)}" for r in rows)]
    )


def _verdict(baselines: list[Baseline], trained: Baseline) -> str:
    """Returns a sentence on what the run is better than."""
    reached = trained.bits_per_byte or math.inf
    beaten = [row.name for row in baselines if (row.bits_per_byte or 0) > reached]
    others = [row.name for row in baselines if row.name not in beaten]
    text = f"\nThe model beats {', '.join(beaten) or 'none of these'}"
    return f"{text}, and not yet {', '.join(others)}." if others and beaten else f"{text}."


if __name__ == "__main__":
    run(main)
