"""Lets a model continue texts.

python -m jaxpretrain.sample --checkpoint=runs/nano --prompt="Fellow-Citizens"
"""

import json
import sys

from jaxpretrain.config.command import Parser, run
from jaxpretrain.config.paths import as_path


def main(argv: list[str]) -> int:
    """Prints the prompts with their continuations, or one JSON document."""
    parser = make_parser()
    flags = parser.parse_args(argv)
    if flags.num_tokens < 1:
        parser.error("--num_tokens must be at least 1")

    from jaxpretrain.inference import continue_texts  # after the flags: it imports JAX

    trained, texts = continue_texts(flags)
    samples = [
        {"prompt": prompt, "continuation": generated.text, "ended": generated.ended}
        for prompt, generated in zip(flags.prompt, texts, strict=True)
    ]
    if flags.json:
        document = {"step": trained.step, "samples": samples}
        if trained.weights is not None:
            document["weights"] = trained.weights
        if len(samples) == 1:
            document |= samples[0]
        json.dump(document, sys.stdout, ensure_ascii=False)
        print()
    else:
        if trained.weights is not None:
            print(f"step {trained.step:,}, {trained.weights} weights", file=sys.stderr)
        print("\n\n".join(sample["prompt"] + sample["continuation"] for sample in samples))
    return 0


def make_parser() -> Parser:
    """Returns the parser of the command."""
    parser = Parser(prog="python -m jaxpretrain.sample", description=__doc__)
    add = parser.add_argument
    add("--checkpoint", type=as_path, required=True, help="a run, or one of its steps")
    add("--prompt", required=True, action="append", help="text to continue; can be repeated")
    add("--num_tokens", type=int, default=100, help="tokens to add, at most")
    add("--temperature", type=float, default=0.8, help="0 takes the likeliest")
    add("--top_k", type=int, help="draw from so many tokens, the likeliest")
    add("--top_p", type=float, help="draw from the fewest tokens of this much probability")
    add("--stop", action="append", default=[], help="text to end before; can be repeated")
    add("--seed", type=int, default=0, help="seed of the draws")
    add("--weights", choices=("plain", "average"), help="default: those that the run evaluates")
    add("--json", action="store_true", help="print one JSON document")
    return parser


if __name__ == "__main__":
    run(main)
