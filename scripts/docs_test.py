"""Runs the commands of README.md, docs/*.md and notebooks/*.ipynb as a reader runs them.

    python scripts/docs_test.py
    python scripts/docs_test.py --pages=docs/data.md --folder=/tmp/docs

Each ```sh block runs by `bash -e` in a folder with a copy of what the pages use, or in the folder
where the block before it ended. README.md comes first: later pages use its results, such as
runs/quickstart. Marks stand behind `sh`:

    sh           run as printed
    sh short     run with few steps and few items (SHORTER below); flags that follow the mark are
                 added to each training command
    sh parse     needs a cluster, a card, the network or files that nobody has: check the syntax
                 of the shell, the names of the flags, the fields and values of the config
    sh fails     must exit with 2 and print the next block, in which ... stands for any text

A comment <!-- setup COMMANDS --> makes the files that a page assumes. A line that needs the network
(NETWORK below) is only checked in every block. ```python blocks must compile. The code cells of a
notebook run as one script.
"""

import contextlib
import importlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxpretrain.config.command import Parser, run, split_overrides, split_paths
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.files import load_config
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.config.paths import as_local_path
from jaxpretrain.storage.files import cache_dir

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("configs", "docs", "notebooks", "scripts", "Makefile", "README.md", "pyproject.toml")
NETWORK = ("git clone ", "pip install ", "make evals", "make install")
MAX_SECONDS = 900
"""A block that takes longer has failed."""

_BLOCK = re.compile(r"^```(.*)\n((?:.*\n)*?)```$|^<!-- setup\n((?:.*\n)*?)-->$", re.M)

SHORTER = r"""
train_shorter=(--config.train.duration="12 steps" --config.eval.max_examples=16 EXTRA)
jaxpretrain() {
    case $1 in
        train) command jaxpretrain "$@" "${train_shorter[@]}" ;;
        evaluate) command jaxpretrain "$@" --limit=4 ;;
        sample) command jaxpretrain "$@" --num_tokens=8 ;;
        *) command jaxpretrain "$@" ;;
    esac
}
python() {
    case "$1 $2" in
        "-m jaxpretrain.main") command python "$@" "${train_shorter[@]}" ;;
        *) command python "$@" ;;
    esac
}
make() { command make --old-file=.venv/.core "$@" ARGS="${train_shorter[*]@Q}"; }
"""
"""Shell functions that stand before the commands of a short block; EXTRA are its own flags."""


@dataclass(frozen=True)
class Block:
    """A piece of a page: its kind is setup, python, notebook, or a mark of the docstring."""

    page: str
    line: int
    kind: str
    text: str
    flags: str = ""
    """What a short block adds to training commands."""
    expected: str = ""
    """What a failing block prints."""

    @property
    def title(self) -> str:
        """The place of the block and its first command."""
        return f"{self.page}:{self.line}  {first_words(self.text)}"


@dataclass(frozen=True)
class Failure:
    """A block that did not do what its page says."""

    block: Block
    reason: str


def main(argv: list[str]) -> int:
    """Runs the pages; returns 1 where a block failed."""
    parser = Parser(prog="python scripts/docs_test.py", description=__doc__)
    parser.add_argument("--pages", default="", help="pages, comma-separated; by default all")
    folder = "working folder, kept; by default temporary"
    parser.add_argument("--folder", type=as_local_path, help=folder)
    flags = parser.parse_args(argv)
    chosen = split_paths(flags.pages) or _all_pages()
    if unknown := [page for page in chosen if not (ROOT / page).is_file()]:
        raise InputError(f"--pages={unknown[0]}: no such file in {ROOT}")
    with contextlib.ExitStack() as stack:
        folder = flags.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not (folder / "runs" / "quickstart").is_dir() and "README.md" not in chosen:
            chosen = ["README.md", *chosen]
        _fill(folder)
        failures = []
        for page in chosen:
            shell = Shell(folder)
            for block in read_page(page, (ROOT / page).read_text()):
                reason = shell.check(block)
                failures += [Failure(block, reason)] if reason else []
    for failure in failures:
        print(f"\nFAILED  {failure.block.title}\n{failure.reason}")
    print(f"\n{len(chosen)} pages, {len(failures)} failed blocks")
    return 1 if failures else 0


def _all_pages() -> list[str]:
    others = [*(ROOT / "docs").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]
    return ["README.md", *(path.relative_to(ROOT).as_posix() for path in sorted(others))]


def read_page(page: str, text: str) -> Iterator[Block]:
    """Yields the blocks of a page in their order."""
    if page.endswith(".ipynb"):
        yield Block(page, 1, "notebook", notebook_script(text))
        return
    blocks = list(_BLOCK.finditer(text))
    for number, block in enumerate(blocks):
        line = text.count("\n", 0, block.start()) + 1
        if block[3] is not None:
            yield Block(page, line, "setup", block[3])
            continue
        language, *words = (block[1] or "").split(maxsplit=2) or [""]
        if language == "sh":
            mark, flags = [*(words or ["run"]), ""][:2]
            expected = blocks[number + 1][2] if mark == "fails" else ""
            yield Block(page, line, mark, block[2], flags, expected)
        elif language == "python":
            yield Block(page, line, "python", block[2])


def notebook_script(text: str) -> str:
    """Returns the code cells of a notebook as one script; a shell runs those with %%bash."""
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    script = ["import subprocess"]
    for cell in cells:
        code = "".join(cell["source"])
        first, _, commands = code.partition("\n")
        is_shell = first == "%%bash"
        run_shell = f"subprocess.run(['bash', '-e', '-c', {commands!r}], check=True)"
        script.append(run_shell if is_shell else code)
    return "\n".join(script)


def _fill(folder: Path) -> None:
    """Copies what the pages use into the working folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        elif source.exists():
            shutil.copy(source, target)
    if not (folder / ".venv").is_symlink():
        (folder / ".venv").symlink_to(sys.prefix)


class Shell:
    """Runs the blocks of a page. Each has a shell of its own, in the folder where the last ended.

    The home directory is a folder of the working folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cwd = folder

    def check(self, block: Block) -> str:
        """Runs or checks a block; returns what is wrong with it."""
        try:
            if block.kind == "python":
                compile(block.text, f"{block.page}:{block.line}", "exec")
                return ""
            if block.kind == "notebook":
                return self._execute(block, [sys.executable, "-c", block.text], [block.text])
            if block.kind not in ("run", "short", "fails", "setup", "parse"):
                return f"unknown mark '{block.kind}'"
            commands = split_commands(block.text)
            local = [c for c in commands if block.kind != "parse" and not c.startswith(NETWORK)]
            for command in commands:
                if command not in local:
                    _check_command(command, self._folder)
                    _print_line("   parsed", block, command)
            return self._run(block, local) if local else ""
        except (InputError, SyntaxError, ValueError) as error:
            return f"{error}"

    def _run(self, block: Block, commands: list[str]) -> str:
        """Runs commands in one shell, which reports on descriptor 3 what is done and where."""
        marks = [f'{command}\necho "{i} $PWD" >&3\n' for i, command in enumerate(commands)]
        shorter = SHORTER.replace("EXTRA", block.flags) if block.kind == "short" else ""
        return self._execute(block, ["bash", "-e", "-c", shorter + "".join(marks)], commands)

    def _execute(self, block: Block, argv: list[str], commands: list[str]) -> str:
        """Runs a program, prints a line for each command that is done, returns what is wrong."""
        with tempfile.TemporaryFile("w+") as output, tempfile.NamedTemporaryFile("r") as done:
            started = last = time.monotonic()
            program = subprocess.Popen(
                ["bash", "-c", 'exec 3>"$0" "$@"', done.name, *argv],
                cwd=self._cwd,
                env=self._environment(),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            code = None
            while code is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = program.wait(0.2)
                now = time.monotonic()
                for line in done.read().splitlines():
                    number, _, cwd = line.partition(" ")
                    self._cwd = Path(cwd)
                    _print_line(f"{now - last:7.1f} s", block, commands[int(number)])
                    last = now
                if now - started > MAX_SECONDS:
                    os.killpg(program.pid, signal.SIGKILL)
                    return f"took more than {MAX_SECONDS} seconds"
            if block.kind in ("fails", "notebook"):
                _print_line(f"{now - last:7.1f} s", block, commands[-1])
            output.seek(0)
            return _judge(block, code, output.read())

    def _environment(self) -> dict[str, str]:
        home = self._folder / "home"
        home.mkdir(exist_ok=True)
        return os.environ | {
            "HOME": str(home),
            "JAXPRETRAIN_CACHE": str(cache_dir()),
            "PATH": f"{Path(sys.prefix, 'bin')}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "VIRTUAL_ENV": sys.prefix,
            "MPLBACKEND": "agg",
        }


def _judge(block: Block, code: int, output: str) -> str:
    """Returns what is wrong with an exit code and an output, or nothing."""
    tail = "\n".join(output.splitlines()[-25:])
    wanted = 2 if block.kind == "fails" else 0
    if code != wanted:
        return f"exit code {code}, not {wanted}:\n{tail}"
    position, words = 0, " ".join(output.split())
    for part in block.expected.split("..."):
        part = " ".join(part.split())
        found = words.find(part, position)
        if found < 0:
            return f"the page says\n{part}\nthe command says\n{tail}"
        position = found + len(part)
    return ""


def split_commands(text: str) -> list[str]:
    """Splits a script into its complete commands.

    Raises:
      InputError: the script ends in the middle of one.
    """
    commands, lines = [], []
    for line in text.splitlines():
        lines.append(line)
        command = "\n".join(lines)
        if not line.endswith("\\") and not _syntax_error(command):
            commands.append(command)
            lines = []
    if lines:
        raise InputError(_syntax_error("\n".join(lines)) or "a command without its end")
    return [command for command in commands if _without_comments(command)]


def _syntax_error(command: str) -> str:
    checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
    return checked.stderr


def _without_comments(command: str) -> str:
    lines = (line.strip() for line in command.splitlines())
    return "".join(line for line in lines if not line.startswith("#"))


def _check_command(command: str, folder: Path) -> None:
    """Checks the flags and the settings of each program of ours in a command.

    Raises:
      InputError: one does not exist.
    """
    one_line = command.replace("\\\n", " ")
    lexer = shlex.shlex(one_line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    for position, word in enumerate(words):
        rest = words[position + 1 :]
        end = next((i for i, w in enumerate(rest) if set(w) <= set("();<>|&")), len(rest))
        arguments = rest[:end]
        if word == "-m" and rest[0].startswith("jaxpretrain."):
            name = rest[0].removeprefix("jaxpretrain.")
            _check_flags([name, *arguments[1:]], folder)
        elif word == "jaxpretrain" and words[0] != "git":
            _check_flags(arguments, folder)
        elif word.startswith("scripts/") and word.endswith(".py"):
            _check_script([word, *arguments], folder)
        elif word == "make" and arguments:
            _check_target(arguments[0], folder)


def _check_flags(arguments: list[str], folder: Path) -> None:
    """Lets the parser of a command see its flags, and its config the overrides."""
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        with contextlib.suppress(SystemExit):
            importlib.import_module("jaxpretrain.__main__").main([*arguments, "--help"])
        rest, overrides = split_overrides(arguments)
        config = next((a.partition("=")[2] for a in rest if a.startswith("--config=")), "")
        is_known = config and "$" not in config and ".." not in config and ".yaml" not in config
        if overrides and is_known:
            apply_overrides(load_config(config), overrides)


def _check_script(arguments: list[str], folder: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments, "--help"]
    checked = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if checked.returncode:
        raise InputError(checked.stderr)


def _check_target(target: str, folder: Path) -> None:
    if not re.search(rf"^{re.escape(target)}:", (folder / "Makefile").read_text(), re.M):
        raise InputError(f"the Makefile has no target {target}")


def _print_line(start: str, block: Block, command: str) -> None:
    print(f"{start}  {block.page}:{block.line}  {first_words(command)}", flush=True)


def first_words(command: str) -> str:
    """Returns a command on one line, cut to 90 characters."""
    text = " ".join(command.replace("\\\n", " ").split())
    return text if len(text) <= 90 else f"{text[:87]}..."


if __name__ == "__main__":
    run(main)
