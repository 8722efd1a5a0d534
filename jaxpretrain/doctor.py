"""Says what a machine offers for training: python -m jaxpretrain.doctor [--json]"""

import json

from jaxpretrain.config.command import Parser, run


def main(argv: list[str]) -> int:
    """Prints what was found and a verdict; returns 0 where training can start, 1 otherwise."""
    flags = make_parser().parse_args(argv)
    from jaxpretrain.inspection.machine import examine  # after the flags: it imports JAX

    found, problems = examine()
    if flags.json:
        print(json.dumps(found | {"problems": problems}))
        return 1 if problems else 0
    width = max(map(len, found))
    for name, value in found.items():
        first, *others = [value] if isinstance(value, str) else value
        print(f"{name:<{width}}  {first}")
        for line in others:
            print(f"{'':<{width}}  {line}")
    for problem in problems:
        print(f"problem: {problem}")
    print("verdict: not ready" if problems else "verdict: ready to train")
    return 1 if problems else 0


def make_parser() -> Parser:
    """Returns the parser of the command."""
    parser = Parser(prog="jaxpretrain doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


if __name__ == "__main__":
    run(main)
