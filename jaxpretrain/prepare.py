r"""Turns text into token files.

    jaxpretrain prepare --output=data/books --files=books/ --vocab_size=4096
    jaxpretrain prepare --output=data/notes --files=a.jsonl.gz,b.txt \
        --tokenizer=tokenizer.json
    jaxpretrain prepare --output=data/sotu --dataset=sotu_text

Writes raw token files, the tokenizer and a manifest. Use the folder as `data.root` of a run. After
an interruption, run the same command again; it continues.
"""

import json
import os
import time
from dataclasses import fields
from pathlib import Path

from jaxpretrain.config.command import Parser, run, split_paths
from jaxpretrain.config.overrides import validate
from jaxpretrain.config.paths import as_local_path, expand_paths
from jaxpretrain.data.prepare.documents import KINDS
from jaxpretrain.data.prepare.prepare_text import PrepareText, describe_lost, prepare_text
from jaxpretrain.data.prepare.rows import Rows
from jaxpretrain.data.token_files.manifest import Manifest


def main(argv: list[str]) -> None:
    """Runs the command."""
    parser = make_parser()
    flags = parser.parse_args(argv)
    if flags.template is not None and flags.text_key != PrepareText().text_key:
        parser.error("--text_key and --template both name the text of a document; give one")
    flags.files = tuple(name for value in flags.files for name in split_paths(value))
    flags.where = tuple(flags.where)
    spec = PrepareText(**{field.name: getattr(flags, field.name) for field in fields(PrepareText)})
    rows = Rows(**{field.name: getattr(flags, field.name) for field in fields(Rows)})
    validate(spec, "--")
    validate(rows, "--")
    spec, output = expand_paths(spec), flags.output
    start = time.perf_counter()
    manifest = prepare_text(spec, output, workers=flags.workers, rows=rows)
    summary = _summary(manifest, output, time.perf_counter() - start)
    print(json.dumps(summary) if flags.json else _describe(summary))


def make_parser() -> Parser:
    """Returns the parser of the command."""
    default = PrepareText()
    parser = Parser(prog="jaxpretrain prepare", description=__doc__)
    add = parser.add_argument
    add("--output", type=as_local_path, required=True, help="folder to create")
    add("--dataset", help="TFDS text dataset, NAME[:CONFIG]; sotu_text requires no network")
    add("--data_dir", help="folder of TFDS datasets")
    files = "files, folders and globs, comma-separated; repeatable; also gs://... and "
    files += f"hf://datasets/ORG/NAME/... Kinds: {KINDS}"
    add("--files", action="append", default=[], help=files)
    add("--text_key", default=default.text_key, help="feature, key or column of the text")
    _add_rows(parser)
    fraction = "part of the documents that is kept for validation, if the corpus has no splits"
    add("--validation_fraction", type=float, default=default.validation_fraction, help=fraction)
    tokenizer = "tokenizer.json, folder, or name of a model on the hub; bpe trains one"
    add("--tokenizer", default=default.tokenizer, help=tokenizer)
    add("--vocab_size", type=int, default=default.vocab_size, help="size of a trained tokenizer")
    add("--eos_token", default=default.eos_token, help="token at the end of every document")
    add("--name", help="name in evaluations (default: that of the dataset)")
    add("--part_tokens", type=int, default=default.part_tokens, help="tokens per file")
    add("--download", action="store_true", help="download the TFDS dataset or the tokenizer")
    add("--workers", type=int, default=os.cpu_count() or 1, help="tokenizing processes")
    add("--json", action="store_true", help="print one JSON document on standard output")
    return parser


def _add_rows(parser: Parser) -> None:
    """Adds the flags that choose documents among rows and texts."""
    default, add = Rows(), parser.add_argument
    template = "text of a document from several columns, such as '{title}\\n{body}'"
    add("--template", type=_unescaped, help=template)
    where = "rows to take, such as 'score>=3' or lang=en,de; repeatable"
    add("--where", action="append", default=[], metavar="TEST", help=where)
    add("--id_key", help="column of ids, which are kept in SPLIT/ids.jsonl")
    separator = "text between the documents of one file or row; \\n is a new line"
    add("--document_separator", type=_unescaped, help=separator)
    add("--bos_token", help="token at the beginning of every document")
    add("--max_bytes", type=int, help="leave out documents of more bytes")
    undecodable = "documents that may be left out because they are not text"
    add("--max_undecodable", type=int, default=default.max_undecodable, help=undecodable)


def _unescaped(text: str) -> str:
    """Returns a text in which a typed backslash with n or t is a new line or a tab."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


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
        "lost": manifest.created_from.get("lost", {}),
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
    if lost := describe_lost(summary["lost"]).strip(" ()"):
        lines.append(f"  {lost}")
    lines.append(f"  {summary['seconds']:.1f} s, {summary['tokens_per_second']:,} tokens/s")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
