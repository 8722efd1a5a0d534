"""Text to token files.

    python -m jaxpretrain.prepare --output=DIR --dataset=sotu_text
    python -m jaxpretrain.prepare --output=DIR --files=a.jsonl.gz,b.txt --tokenizer=tokenizer.json

Writes raw token files, the tokenizer and a manifest; the directory is then `data.root` of a run.
Run the same command again to go on after an interruption.
"""

import json
import os
import time
from dataclasses import fields
from pathlib import Path

from jaxpretrain.config.command import Parser, run, split_paths
from jaxpretrain.config.overrides import validate
from jaxpretrain.config.paths import as_path, expand_paths
from jaxpretrain.data.prepare.documents import COMPRESSED, LINES, TEXT
from jaxpretrain.data.prepare.prepare_text import PrepareText, prepare_text
from jaxpretrain.data.token_files.manifest import Manifest


def main(argv: list[str]) -> None:
    """Runs the command."""
    flags = make_parser().parse_args(argv)
    flags.files = tuple(name for value in flags.files for name in split_paths(value))
    spec = PrepareText(**{field.name: getattr(flags, field.name) for field in fields(PrepareText)})
    validate(spec, "--")
    spec, output = expand_paths(spec), flags.output
    start = time.perf_counter()
    manifest = prepare_text(spec, output, workers=flags.workers)
    summary = _summary(manifest, output, time.perf_counter() - start)
    print(json.dumps(summary) if flags.json else _describe(summary))


def make_parser() -> Parser:
    """Returns the parser of the command."""
    default = PrepareText()
    parser = Parser(prog="python -m jaxpretrain.prepare", description=__doc__)
    add = parser.add_argument
    add("--output", type=as_path, required=True, help="directory to make")
    add("--dataset", help="TFDS text dataset, name or name:config; sotu_text needs no network")
    add("--data_dir", help="directory of TFDS datasets")
    kinds = f"{', '.join(LINES + TEXT)}, also compressed ({', '.join(COMPRESSED)})"
    files = f"files, folders and globs, by commas or the flag again: {kinds}"
    add("--files", action="append", default=[], help=files)
    add("--text_key", default=default.text_key, help="feature or key that holds the text")
    add("--validation_fraction", type=float, default=default.validation_fraction)
    add("--tokenizer", default=default.tokenizer, help="tokenizer.json, or bpe to train one")
    add("--vocab_size", type=int, default=default.vocab_size, help="of a trained tokenizer")
    add("--eos_token", default=default.eos_token, help="token that ends every document")
    add("--name", help="short name for evaluations; default: the dataset's")
    add("--part_tokens", type=int, default=default.part_tokens, help="tokens a file")
    add("--download", action="store_true", help="let TFDS download a dataset")
    add("--workers", type=int, default=os.cpu_count() or 1, help="tokenizing processes")
    add("--json", action="store_true", help="one JSON document on standard output")
    return parser


def _summary(manifest: Manifest, output: Path, seconds: float) -> dict:
    counts = ("num_documents", "num_tokens", "num_bytes")
    splits = {
        name: {count: getattr(split, count) for count in counts}
        for name, split in manifest.splits.items()
    }
    num_tokens = sum(split.num_tokens for split in manifest.splits.values())
    return {
        "output": str(output),
        "name": manifest.name,
        "splits": splits,
        "vocab_size": manifest.vocab_size,
        "dtype": manifest.dtype,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(num_tokens / seconds),
    }


def _describe(summary: dict) -> str:
    lines = [f"{summary['output']}: {summary['name']}, vocabulary {summary['vocab_size']}"]
    for name, split in summary["splits"].items():
        per_token = split["num_bytes"] / split["num_tokens"]
        lines.append(
            f"  {name:<12}{split['num_documents']:>12,} documents {split['num_tokens']:>16,} tokens"
            f" {split['num_bytes'] / 1e6:>12,.1f} MB {per_token:>8.2f} bytes/token"
        )
    lines.append(f"  {summary['seconds']:.1f} s, {summary['tokens_per_second']:,} tokens/s")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
