"""Runs a command by name: `jaxpretrain train ...`, which is `python -m jaxpretrain train ...`."""

import argparse
import importlib
import sys
from functools import partial

import shtab

from jaxpretrain import __version__
from jaxpretrain.config.command import run
from jaxpretrain.config.errors import InputError, nearest
from jaxpretrain.config.files import packaged
from jaxpretrain.config.paths import as_local_path
from jaxpretrain.storage.paths import as_path

COMMANDS = {
    "train": ("main", "train a model, or continue a run"),
    "prepare": ("prepare", "turn text into token files"),
    "show_batch": ("show_batch", "show the files, offsets and text in the batch of a step"),
    "plan": ("plan", "predict memory, time and cost of a run"),
    "evaluate": ("evaluate", "score a checkpoint on tasks and held-out data"),
    "sample": ("sample", "generate text with a model"),
    "convert": ("convert", "read and write checkpoints of Hugging Face, OLMo and Sapiens"),
    "doctor": ("doctor", "check this machine: devices, memory, packages"),
    "launch": ("launch.__main__", "train on SLURM, GKE or TPU VMs; restart what was cut off"),
    "report": ("report", "write one HTML page about one or more runs"),
    "replay": ("replay.__main__", "compute steps of a run again, and show what is in them"),
    "track": ("track.__main__", "send a run to Weights & Biases or MLflow, also later"),
    "sweep": ("sweep", "compare settings over several seeds; tell differences from noise"),
    "scaling": ("scaling", "fit a scaling law to small runs, and predict a larger one"),
    "coordinate_check": ("coordinate_check.__main__", "check that sizes can share their settings"),
}
"""Command -> the module with its `main`, and what the command does."""

_CHOICES = {"config": packaged, "sweep": partial(packaged, "sweep")}
"""Flag -> the function that returns the names to complete its value with."""

_SPLIT_AT_EQUALS = r"""
# Bash makes three words of --flag=value; the completions expect two.
_jaxpretrain() {
  local words=() index current=$COMP_CWORD
  for index in "${!COMP_WORDS[@]}"; do
    if [[ ${COMP_WORDS[index]} != "=" ]]; then words+=("${COMP_WORDS[index]}")
    elif (( index == COMP_CWORD )); then words+=("")
    elif (( index < COMP_CWORD )); then (( current-- )); fi
  done
  COMP_WORDS=("${words[@]}") COMP_CWORD=$current
  _shtab_jaxpretrain
}
complete -o bashdefault -F _jaxpretrain jaxpretrain
"""


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
    if name == "completion":
        print(completion(rest[0] if rest else ""))
        return 0
    module = "main" if name == "main" else COMMANDS.get(name, (None,))[0]
    if module is None:
        hint = nearest(name, COMMANDS) or f" The commands are {', '.join(COMMANDS)}."
        raise InputError(f"there is no command '{name}'.{hint}")
    return importlib.import_module(f"jaxpretrain.{module}").main(rest)


def _help() -> str:
    lines = [f"  {name:<16} {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: jaxpretrain COMMAND [FLAGS]",
            "",
            "commands:",
            *lines,
            "",
            "`jaxpretrain COMMAND --help` explains the flags of a command.",
            "`jaxpretrain --version` prints the version.",
            '`eval "$(jaxpretrain completion bash)"` completes commands and flags in bash;',
            "fish, zsh and tcsh work too.",
        ]
    )


def completion(shell: str) -> str:
    """Returns a script for a shell that completes commands, flags, packaged configs and paths.

    Raises:
      InputError: there are no completions for such a shell.
    """
    if shell not in shtab.SUPPORTED_SHELLS:
        raise InputError(f"completion needs a shell: {', '.join(shtab.SUPPORTED_SHELLS)}")
    root = argparse.ArgumentParser(prog="jaxpretrain")
    commands = root.add_subparsers()
    for name, (module, purpose) in COMMANDS.items():
        parser = importlib.import_module(f"jaxpretrain.{module}").make_parser()
        for action in parser._actions:
            if action.dest in _CHOICES:
                action.choices = list(_CHOICES[action.dest]())
            elif action.type in (as_path, as_local_path) or action.dest == "files":
                action.complete = shtab.FILE
        commands.add_parser(name, parents=[parser], add_help=False, help=purpose)
    shells = commands.add_parser("completion", help="print a script that completes commands")
    shells.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    script = shtab.complete(root, shell)
    return script + _SPLIT_AT_EQUALS if shell == "bash" else script


def start() -> None:
    """Starts the console command `jaxpretrain`; exits with the code of the command."""
    if sys.argv[1:2] in (["train"], ["main"], ["evaluate"], ["replay"]):
        from jaxpretrain.devices.startup import use_huge_pages  # only where a model computes

        use_huge_pages()
    run(main)


if __name__ == "__main__":
    start()
