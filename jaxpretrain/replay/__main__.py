r"""Computes a stretch of a run again, proves that it is the same, and shows what is in it.

    jaxpretrain replay --workdir=runs/nano --steps=490-510
    jaxpretrain replay --workdir=runs/nano --steps=490-510 --without=500
    jaxpretrain replay --workdir=runs/nano --steps=490-510 \
        --config.optim.clip_norm=0.5

The run's folder is only read; what is found goes to its replays/. --config.PATH=VALUE makes one
more arm from the same checkpoint, with other values.
"""

from jaxpretrain.config.command import Parser, list_exit_codes, run, split_overrides
from jaxpretrain.devices.startup import use_huge_pages, use_most_memory
from jaxpretrain.display.progress import activity
from jaxpretrain.storage.paths import as_path

_EXIT_CODES = {
    0: "the steps are the same, rounding aside",
    2: "a flag is wrong, or the run has no such steps, checkpoint or data",
    3: "the steps differ from what the run has recorded, or each time",
}
"""Exit code of the command -> its meaning."""


def main(argv: list[str]) -> int:
    """Replays a stretch and prints what was found; returns a code of `_EXIT_CODES`."""
    rest, overrides = split_overrides(argv)
    flags = make_parser().parse_args(rest)
    use_most_memory()
    with activity("loading JAX"):  # after the flags, and not silently
        from jaxpretrain.replay.console import run_replay

    code, text = run_replay(flags, overrides)
    print(text)
    return code


def make_parser() -> Parser:
    """Returns the parser of the command, without the flags that name fields of the config."""
    parser = Parser(
        prog="jaxpretrain replay",
        usage="%(prog)s --workdir=DIR --steps=A-B [FLAGS]",
        description=__doc__,
        epilog=list_exit_codes(_EXIT_CODES),
    )
    add = parser.add_argument
    add("--workdir", type=as_path, metavar="DIR", required=True, help="folder of the run")
    steps = "steps to look at, or one step (default with --against: where the runs part)"
    add("--steps", metavar="A-B", help=steps)
    start = "checkpoint to begin with; 0: the initial state (default: the newest before the steps)"
    add("--from", dest="start", type=int, metavar="STEP", help=start)
    examples = "examples to look at more closely; 0: only prove that the steps are the same"
    add("--examples", type=int, default=6, help=examples)
    without = "what if these steps' samples were left out, as by --skip_steps; repeatable"
    add("--without", action="append", default=[], metavar="STEP", help=without)
    samples = "what if these samples were left out: K,K or K-K; repeatable"
    add("--without_examples", action="append", default=[], metavar="LIST", help=samples)
    add("--twice", action="store_true", help="compute all of it twice and compare the bits")
    against = "another run of the config, or FILE.csv or .jsonl with losses of another program"
    add("--against", type=as_path, metavar="DIR", help=against)
    where = "folder to write to (default: replays/A-B in the folder of the run)"
    add("--output", type=as_path, metavar="DIR", help=where)
    add("--json", action="store_true", help="print one JSON document on standard output")
    return parser


if __name__ == "__main__":
    use_huge_pages()
    run(main)
