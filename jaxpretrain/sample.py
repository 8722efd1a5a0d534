"""Continues texts with a model.

    jaxpretrain sample --checkpoint=runs/nano --prompt="Fellow" --num_tokens=48
    jaxpretrain sample --checkpoint=runs/nano --prompt="The" --temperature=0

Prints each prompt with its continuation.
"""

import json
import sys

from jaxpretrain.config.command import Parser, run
from jaxpretrain.display.progress import activity
from jaxpretrain.storage.paths import as_path


def main(argv: list[str]) -> int:
    """Prints the prompts with their continuations, or one JSON document."""
    parser = make_parser()
    flags = parser.parse_args(argv)
    if flags.num_tokens < 1:
        parser.error("--num_tokens must be at least 1")

    with activity("loading JAX"):  # after the flags, and not silently
        from jaxpretrain.inference import continue_texts

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
    parser = Parser(prog="jaxpretrain sample", description=__doc__)
    add = parser.add_argument
    add("--checkpoint", type=as_path, required=True, help="run, DIR/checkpoints/STEP, or HF folder")
    add("--prompt", required=True, action="append", help="text to continue; repeatable")
    add("--num_tokens", type=int, default=100, help="maximum number of tokens to add")
    add("--temperature", type=float, default=0.8, help="0 takes the likeliest token")
    add("--top_k", type=int, help="draw from the N likeliest tokens")
    add("--top_p", type=float, help="draw from the fewest tokens of probability X together")
    add("--stop", action="append", default=[], help="end before this text; repeatable")
    add("--seed", type=int, default=0, help="seed of the draws")
    add("--weights", choices=("plain", "average"), help="which weights (default: as in the run)")
    add("--json", action="store_true", help="print one JSON document on standard output")
    return parser


if __name__ == "__main__":
    run(main)
