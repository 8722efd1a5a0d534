"""Continues a text: python -m jaxpretrain.sample --checkpoint=DIR --prompt=TEXT."""

import json
import sys
from pathlib import Path

from jaxpretrain.config.command import Parser, run
from jaxpretrain.config.errors import InputError


def main(argv: list[str]) -> int:
    """Prints the prompt with its continuation, or one JSON document."""
    parser = Parser(prog="python -m jaxpretrain.sample", description="Continues a text.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run, or one of its steps")
    parser.add_argument("--prompt", required=True, help="text to continue")
    parser.add_argument("--num_tokens", type=int, default=100, help="tokens to add")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    flags = parser.parse_args(argv)
    if flags.num_tokens < 1:
        parser.error("--num_tokens must be at least 1")
    if flags.temperature < 0:
        parser.error("--temperature must not be negative")

    from jaxpretrain.evals.generate import Generator  # after the flags: these import JAX
    from jaxpretrain.train.trained import load_trained

    trained = load_trained(flags.checkpoint)
    if trained.tokenizer_path is None:
        raise InputError(f"{flags.checkpoint} has no tokenizer.json, so it cannot read a prompt")
    generator = Generator(trained.model, trained.tokenizer_path)
    text = generator(
        trained.params,
        flags.prompt,
        flags.num_tokens,
        temperature=flags.temperature,
        seed=flags.seed,
    )
    if flags.json:
        document = {"step": trained.step, "prompt": flags.prompt, "continuation": text}
        json.dump(document, sys.stdout, ensure_ascii=False)
        print()
    else:
        print(flags.prompt + text)
    return 0


if __name__ == "__main__":
    run(main)
