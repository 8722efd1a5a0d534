"""Runs a command by name: `jaxpretrain train ...`, which is `python -m jaxpretrain train ...`."""

import importlib
import sys

from jaxpretrain import __version__
from jaxpretrain.config.command import run
from jaxpretrain.config.errors import InputError, nearest

COMMANDS = {
    "train": ("main", "train a model, or go on with a run"),
    "prepare": ("prepare", "turn text into token files"),
    "show_batch": ("show_batch", "show the files, offsets and text in the batch of a step"),
    "plan": ("plan", "say whether a run fits, how fast it is and what it costs"),
    "evaluate": ("evaluate", "score a checkpoint on tasks and held-out data"),
    "sample": ("sample", "let a model continue texts"),
    "convert": ("convert", "read and write checkpoints of Hugging Face, OLMo and Sapiens"),
    "doctor": ("doctor", "say what this machine offers for training"),
    "report": ("report", "write the page about a run, or about several"),
}
"""Command -> the module with its `main`, and what the command does."""


def main(argv: list[str]) -> int | None:
    """Runs the command that the first argument names; returns its exit code.

    Raises:
      InputError: there is no such command.
    """
    name, *rest = argv or ["--help"]
    if name in ("--help", "-h"):
        print(_help())
        return 0
    if name == "--version":
        print(__version__)
        return 0
    module = "main" if name == "main" else COMMANDS.get(name, (None,))[0]
    if module is None:
        hint = nearest(name, COMMANDS) or f" The commands are {', '.join(COMMANDS)}."
        raise InputError(f"there is no command '{name}'.{hint}")
    return importlib.import_module(f"jaxpretrain.{module}").main(rest)


def _help() -> str:
    lines = [f"  {name:<11} {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: jaxpretrain COMMAND [FLAGS]",
            "",
            "commands:",
            *lines,
            "",
            "`jaxpretrain COMMAND --help` explains the flags of a command.",
            "`jaxpretrain --version` prints the version.",
        ]
    )


def start() -> None:
    """Starts the console command `jaxpretrain`; exits with the code of the command."""
    if sys.argv[1:2] in (["train"], ["main"], ["evaluate"]):
        from jaxpretrain.devices.huge_pages import use_huge_pages  # only where a model computes

        use_huge_pages()
    run(main)


if __name__ == "__main__":
    start()
