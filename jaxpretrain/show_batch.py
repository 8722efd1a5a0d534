"""Shows the batch of a step, or the steps that use an example.

    jaxpretrain show_batch --config=olmo_nano --step=500 --rows=2
    jaxpretrain show_batch --config=olmo_nano --find=8633

Prints files, offsets and text. Set the fields of the run as in training (--config.PATH=VALUE).
"""

import json

from jaxpretrain.config.command import Parser, run, split_overrides
from jaxpretrain.config.files import load_config
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.config.paths import as_local_path
from jaxpretrain.display.progress import activity


def main(argv: list[str]) -> None:
    """Runs the command."""
    rest, overrides = split_overrides(argv)
    flags = make_parser().parse_args(rest)
    config = apply_overrides(load_config(flags.config), overrides)

    with activity("loading JAX"):  # after the flags, and not silently
        from jaxpretrain.inspection.batches import show_batch

    document, lines = show_batch(config, flags)
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


if __name__ == "__main__":
    run(main)
