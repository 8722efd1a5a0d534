r"""Checks that what a model computes does not depend on its width or depth.

    jaxpretrain coordinate_check --config=olmo_nano \
        --config.model.scaling=mup --config.model.base_width=64 \
        --widths=64,128,256

Trains models of several sizes for some steps at the peak of the learning rate. Shows the slopes of
the changes of activations and logits over the size: they are flat where sizes share settings.
"""

import json

from jaxpretrain.config.command import Parser, list_exit_codes, run, split_overrides
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.files import load_config
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.config.paths import as_local_path
from jaxpretrain.display.progress import activity

_NOT_FLAT = 3
_EXIT_CODES = {0: "flat", 2: "a flag or the config is wrong", _NOT_FLAT: "not flat"}
"""Exit code of the command -> its meaning."""


def main(argv: list[str]) -> int:
    """Runs the command; returns a code of `_EXIT_CODES`."""
    rest, overrides = split_overrides(argv)
    flags = make_parser().parse_args(rest)
    widths, depths = _sizes(flags.widths, "--widths"), _sizes(flags.depths, "--depths")
    if not (widths or depths):
        raise InputError("--widths=64,128,256 or --depths=2,4,8 names the sizes to compare")
    for name in ("seeds", "steps"):
        if getattr(flags, name) < 1:
            raise InputError(f"--{name}={getattr(flags, name)}: must be positive")
    config = apply_overrides(load_config(flags.config), overrides)

    with activity("loading JAX"):  # after the flags, and not silently
        from jaxpretrain.coordinate_check.coordinates import check_coordinates, tell
        from jaxpretrain.reports.page import write_coordinates

    document = check_coordinates(
        config, widths=widths, depths=depths, num_seeds=flags.seeds, num_steps=flags.steps
    )
    if flags.output is not None:
        write_coordinates(document, flags.output)
    print(json.dumps(document) if flags.json else "\n".join(tell(document)))
    return 0 if document["flat"] else _NOT_FLAT


def make_parser() -> Parser:
    """Returns the parser of the command."""
    usage = "%(prog)s --config=... --widths=LIST [FLAGS]"
    parser = Parser(
        prog="jaxpretrain coordinate_check",
        usage=usage,
        description=__doc__,
        epilog=list_exit_codes(_EXIT_CODES),
    )
    add = parser.add_argument
    config = "packaged config or FILE.py; --config.PATH=VALUE sets fields"
    add("--config", required=True, help=config)
    widths = "values of model.d_model to compare; heads keep their size, model.d_ff grows too"
    add("--widths", default="", metavar="LIST", help=widths)
    add("--depths", default="", metavar="LIST", help="values of model.num_layers to compare")
    add("--seeds", type=int, default=4, help="number of initializations of each size")
    add("--steps", type=int, default=10, help="number of training steps")
    add("--json", action="store_true", help="print one JSON document on standard output")
    add("--output", type=as_local_path, metavar="FILE", help="HTML page to write, with the curves")
    return parser


def _sizes(text: str, flag: str) -> list[int]:
    """Returns the sizes of a flag; InputError where one is no positive number, or comes twice."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if wrong := [part for part in parts if not part.isdecimal() or int(part) < 1]:
        raise InputError(f"{flag}={text}: '{wrong[0]}' is no size; expected such as 64,128,256")
    sizes = [int(part) for part in parts]
    if len(set(sizes)) < len(sizes):
        raise InputError(f"{flag}={text}: a size comes twice")
    return sizes


if __name__ == "__main__":
    run(main)
