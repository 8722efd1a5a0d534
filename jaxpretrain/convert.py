"""Converts checkpoints of other programs to a run's folder, and back.

    jaxpretrain convert --from=hf --input=OLMo-2-1B --output=runs/olmo2
    jaxpretrain convert --from=olmo --input=step1000 --output=runs/olmo
    jaxpretrain convert --to=hf --input=runs/mine --output=mine-hf
    jaxpretrain convert --from=sapiens --input=1b.pth --output=runs/sapiens
    jaxpretrain convert --merge=runs/a,runs/b,runs/c --output=runs/soup

Only one array or layer is in memory at a time. The output appears completely or not at all.
"""

import argparse
import json
import sys
from pathlib import Path

from jaxpretrain.config.command import Parser, run
from jaxpretrain.display.progress import activity
from jaxpretrain.storage.paths import as_path, parse


def main(argv: list[str]) -> int:
    """Converts, then prints one line, or one JSON document, about what was written."""
    parser = make_parser()
    flags = parser.parse_args(argv)
    _require_consistent(parser, flags)
    with activity("loading JAX"):  # after the flags, and not silently
        from jaxpretrain.conversion import convert

    summary, notes = convert(flags)
    for note in notes:
        print(note, file=sys.stderr)
    print(json.dumps(summary) if flags.json else _describe(summary))
    return 0


def make_parser() -> Parser:
    """Returns the parser of the command."""
    parser = Parser(prog="jaxpretrain convert", description=__doc__)
    add = parser.add_argument
    add("--input", type=as_path, help="folder or file to read")
    add("--output", type=as_path, required=True, help="folder to create")
    forms = "form of the input: a run or what else --checkpoint accepts, a Hugging Face folder, "
    forms += "an unsharded checkpoint of OLMo's trainer, or a .pth file of Sapiens"
    choices = ("checkpoint", "hf", "olmo", "sapiens")
    add("--from", dest="source", choices=choices, default=choices[0], help=forms)
    forms = "form of the output: a run's folder, a Hugging Face folder, or a folder with a "
    forms += "sapiens.pth, which has the encoder (sapiens) or the whole model (sapiens_training)"
    choices = ("checkpoint", "hf", "sapiens", "sapiens_training")
    add("--to", choices=choices, default=choices[0], help=forms)
    dtype = "with --to=hf: type of the weights (default: their original type)"
    add("--dtype", choices=("bfloat16", "float32"), help=dtype)
    add("--image_size", type=int, help="with --from=sapiens: resize positions to N pixels")
    decoder = "with --from=sapiens: refuse an encoder without a decoder, or add a random decoder"
    add("--decoder", choices=("required", "fresh"), default="required", help=decoder)
    weights = "which weights of a run with an average (default: as in its evaluation)"
    add("--weights", choices=("plain", "average"), help=weights)
    add("--tokenizer", help="tokenizer.json, a folder with one, or one that make evals installs")
    add("--eos_id", type=int, help="token that ends documents, if the input has none")
    merge = "checkpoints to average, instead of --input"
    add("--merge", type=_split_merge, metavar="A,B,...", help=merge)
    add("--json", action="store_true", help="print one JSON document on standard output")
    return parser


def _split_merge(text: str) -> list[Path]:
    return [parse(path, "--merge") for path in text.split(",")]


def _require_consistent(parser: Parser, flags: argparse.Namespace) -> None:
    if (flags.input is None) == (flags.merge is None):
        parser.error("give either --input, or --merge with two checkpoints or more")
    if flags.merge and len(flags.merge) == 1:
        parser.error("--merge needs two checkpoints or more, with commas between them")
    if flags.merge and flags.source != "checkpoint":
        parser.error("--merge takes checkpoints as they are; convert others first")
    if flags.source != "sapiens" and (flags.image_size or flags.decoder != "required"):
        parser.error("--image_size and --decoder go with --from=sapiens")
    if flags.weights is not None and flags.source != "checkpoint":
        parser.error("--weights goes with checkpoints of ours, which may keep an average")
    if flags.dtype is not None and flags.to != "hf":
        parser.error("--dtype goes with --to=hf; checkpoints are float32")


def _describe(summary: dict[str, object]) -> str:
    weights = f" ({summary['weights']} weights)" if "weights" in summary else ""
    moments = ", with the state of its optimizer" if summary["has_optimizer"] else ""
    return (
        f"{summary['output']}: step {summary['step']:,}, {summary['num_parameters']:,} parameters"
        f" that were {summary['source_dtype']}{moments}{weights}"
    )


if __name__ == "__main__":
    run(main)
