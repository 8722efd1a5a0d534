"""Evaluates a checkpoint on tasks and validation data.

    jaxpretrain evaluate --checkpoint=runs/nano
    jaxpretrain evaluate --checkpoint=runs/nano --tasks=arc_easy --limit=200
    jaxpretrain evaluate --checkpoint=olmo-hf --perplexity=c4=c4.npy

Without --tasks, --harness and --perplexity, it evaluates what the run itself evaluates.
"""

import argparse
import json
import sys

from jaxpretrain.config import paths
from jaxpretrain.config.command import Parser, run
from jaxpretrain.config.errors import InputError
from jaxpretrain.devices.startup import use_huge_pages
from jaxpretrain.display.progress import activity
from jaxpretrain.storage.files import write_atomically
from jaxpretrain.storage.paths import as_path, is_remote


def main(argv: list[str]) -> int:
    """Evaluates one checkpoint or several of a run; prints tables and writes the files."""
    flags = make_parser().parse_args(argv)
    _check(flags)
    with activity("loading JAX"):  # after the flags, and not silently
        from jaxpretrain.evals.output import to_csv
        from jaxpretrain.inference import evaluate

    outcomes = []
    for outcome in evaluate(flags):
        outcomes.append(outcome)
        print(outcome.table(), file=sys.stderr if flags.json else sys.stdout)
    document = outcomes[-1].document()
    if len(outcomes) > 1:
        document["steps"] = [outcome.document() for outcome in outcomes]
    if flags.output is not None:
        write_atomically(flags.output, json.dumps(document, indent=2) + "\n")
        write_atomically(flags.output.with_suffix(".csv"), to_csv(outcomes))
    if flags.predictions is not None:
        lines = [line for outcome in outcomes for line in outcome.predictions()]
        write_atomically(flags.predictions, "\n".join(lines) + "\n")
    if flags.json:
        print(json.dumps(document))
    return 0


def make_parser() -> Parser:
    """Returns the parser of the command."""
    parser = Parser(prog="jaxpretrain evaluate", description=__doc__)
    add = parser.add_argument
    add("--checkpoint", type=as_path, required=True, help="run, DIR/checkpoints/STEP, or HF folder")
    add("--steps", help="steps of a run: all, FIRST:LAST, or comma-separated")
    add("--tasks", default="", help="tasks, groups and FILE.jsonl, comma-separated")
    add("--limit", type=int, help="maximum number of items per task")
    add("--subset_seed", type=int, help="seed to draw the items of --limit (default: first)")
    add("--perplexity", action="append", default=[], help="NAME=FILE.npy,... of raw token ids")
    add("--harness", default="", help="tasks of lm-evaluation-harness, comma-separated")
    folder = "folder of YAML files with more such tasks"
    add("--harness_folder", type=paths.as_local_path, help=folder)
    add("--num_fewshot", type=int, help="examples per question (default: as in the task)")
    add("--pictures", type=as_path, help="folder for the reconstructions of images")
    tokenizer = "tokenizer.json, or one that make evals installs (default: that of the model)"
    add("--tokenizer", type=paths.as_local_path, help=tokenizer)
    add("--weights", choices=("plain", "average"), help="which weights (default: as in the run)")
    add("--dtype", choices=("bfloat16", "float32"), help="type to compute in (default: as trained)")
    add(
        "--token_dtype",
        choices=("uint16", "uint32"),
        help="type of FILE.npy (default: the smallest)",
    )
    trust = "do not check the type of FILE.npy; for files that are mostly padding"
    add("--trust_token_dtype", action="store_true", default=None, help=trust)
    add("--batch_tokens", type=int, default=4096, help="tokens per batch and device")
    add("--output", type=as_path, help="FILE.json to write, and FILE.csv next to it")
    add("--predictions", type=as_path, help="FILE.jsonl to write, one line per item")
    add("--json", action="store_true", help="print one JSON document on standard output")
    return parser


def _check(flags: argparse.Namespace) -> None:
    """Raises InputError for a flag that cannot be or would do nothing."""
    for name in ("output", "predictions"):
        path = getattr(flags, name)
        if path is not None and not path.parent.is_dir() and not is_remote(path):
            raise InputError(f"--{name}={path}: there is no folder {path.parent}")
    uses = {
        "tasks": ("subset_seed", "predictions"),
        "harness": ("harness_folder", "num_fewshot"),
        "perplexity": ("token_dtype", "trust_token_dtype"),
    }
    for name, others in uses.items():
        for other in others:
            if getattr(flags, other) is not None and not getattr(flags, name):
                raise InputError(f"--{other} is for --{name}, which is not given")
    if flags.pictures is not None and any(getattr(flags, name) for name in uses):
        raise InputError("--pictures is for what the run itself evaluates; name nothing else")
    for name in ("limit", "batch_tokens"):
        if (value := getattr(flags, name)) is not None and value < 1:
            raise InputError(f"--{name}={value}: must be positive")
    if flags.num_fewshot is not None and flags.num_fewshot < 0:
        raise InputError(f"--num_fewshot={flags.num_fewshot}: must not be negative")
    if flags.harness_folder is not None and not flags.harness_folder.is_dir():
        raise InputError(f"--harness_folder={flags.harness_folder}: no such folder")


if __name__ == "__main__":
    use_huge_pages()
    run(main)
