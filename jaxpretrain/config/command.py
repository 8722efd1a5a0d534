"""The common parts of all commands: exit codes, strict flags, overrides among the flags."""

import argparse
import errno
import os
import select
import shlex
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from jaxpretrain import __version__
from jaxpretrain.config.aliases import alias
from jaxpretrain.config.errors import InputError, closest

EXIT_STOPPED = 75
"""The exit code of a command that was asked to stop, has saved, and can be run again to go on."""
EXIT_STALLED = 76
"""The exit code of a training that stood still, and has written down where."""
_OVERRIDE = "--config."
_MAX_COLUMNS = 100
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE)
"""Errors that the disk or the rights of a folder cause, never this program."""


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Calls `main` with the command line and exits with its code (None is 0).

    An InputError ends in one line on standard error and code 2, Ctrl-C in code 130, a disk that is
    full or a folder that cannot be written in one line and code 1, and output that nobody reads any
    more (`| head -1`) in code 141. Any other exception is a failure of ours: it keeps its traceback
    and Python exits with code 1.
    """
    code = None
    try:
        try:
            code = main(sys.argv[1:])
        except InputError as error:
            code = 2
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            code = 130
        except OSError as error:
            if error.errno not in _OF_THE_DISK:
                raise
            code = 1
            where = f"{error.filename}: " if error.filename else ""
            print(f"error: {where}{error.strerror}", file=sys.stderr)
        sys.stdout.flush()  # here, so that Python need not complain when it exits
    except BrokenPipeError:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _has_no_reader(stream)]
        if not closed:
            raise  # a pipe or connection of the program's own
        for stream in closed:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        code = code or 128 + signal.SIGPIPE  # how shells call a program that this signal has ended
    sys.exit(code)


def _has_no_reader(stream: TextIO) -> bool:
    """Returns true where the reader of a pipe has closed it."""
    try:
        number = stream.fileno()
    except OSError:  # no file, such as what tests put in its place
        return False
    poll = select.poll()
    poll.register(number, 0)  # errors alone, which need not be asked for
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def console_command() -> str:
    """Returns the console command `jaxpretrain` of this environment, to be printed for copying."""
    script = Path(sys.prefix, "bin", "jaxpretrain")
    if shutil.which("jaxpretrain") == str(script):
        return "jaxpretrain"
    if not script.exists():
        return f"{shlex.quote(sys.executable)} -m jaxpretrain"
    here = Path.cwd()
    return shlex.quote(str(script.relative_to(here) if script.is_relative_to(here) else script))


def list_exit_codes(meanings: Mapping[int, str]) -> str:
    """Returns the part of a help text that explains exit codes."""
    lines = (f"  {code:<3} {meaning}" for code, meaning in meanings.items())
    return "\n".join(["exit codes:", *lines])


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Returns the items that are no `--config.path=value`, and the (path, value) of the others."""
    rest, overrides = [], []
    for item in argv:
        if not item.startswith(_OVERRIDE):
            rest.append(item)
            continue
        path, equals, value = item.removeprefix(_OVERRIDE).partition("=")
        if not equals:
            raise InputError(f"{item} has no value: write {item}=value")
        overrides.append((path, value))
    return rest, overrides


def split_paths(text: str) -> list[str]:
    """Returns the paths of a flag that takes several, separated by commas.

    An existing name may hold commas: `a,b.txt` is one file where it exists and `a` does not.
    """
    parts, paths = text.split(","), []
    while parts:
        joined = [",".join(parts[:count]) for count in range(1, len(parts) + 1)]
        there = (path for path in joined if path and os.path.lexists(os.path.expanduser(path)))
        path = next(there, parts[0])
        del parts[: path.count(",") + 1]
        paths += [path] if path else []
    return paths


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wraps paragraphs, keeps indented lines, and names the default of each flag that has one."""

    def __init__(self, prog: str) -> None:
        columns = min(shutil.get_terminal_size().columns, _MAX_COLUMNS)
        super().__init__(prog, max_help_position=22, width=columns - 1)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = textwrap.dedent(text).strip().split("\n\n")
        return "\n\n".join(
            paragraph if "\n " in f"\n{paragraph}" else textwrap.fill(paragraph, width)
            for paragraph in paragraphs
        )

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        known = {"int": "N", "float": "X", "as_path": "PATH", "as_local_path": "PATH"}
        return known.get(getattr(action.type, "__name__", ""), "TEXT")

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        has_default = action.default not in (None, "", False, argparse.SUPPRESS, [])
        return text + " (default: %(default)s)" * (has_default and "default" not in text)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser without abbreviations that raises InputError."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(
            *args, **{"allow_abbrev": False, "formatter_class": _HelpFormatter, **kwargs}
        )
        self.add_argument(
            "--version", action="version", version=__version__, help="print the version and exit"
        )

    def format_help(self) -> str:
        """Returns the help; its first line has the required flags alone, unless `usage` is set."""
        if self.usage is None:
            required = (action.option_strings[0] for action in self._actions if action.required)
            self.usage = " ".join(["%(prog)s", *(f"{flag}=..." for flag in required), "[FLAGS]"])
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Raises the InputError for a bad command line; argparse would print and exit."""
        raise InputError(message)

    def parse_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Sequence[str]
    ) -> argparse.Namespace:
        """Parses a command line in which everything must be known."""
        # Before parsing, because argparse would first report a misspelled required flag as missing.
        flags = args[: args.index("--")] if "--" in args else args
        for flag in flags:
            if flag.startswith("--"):
                self._require_known(flag.partition("=")[0])
        namespace, unknown = self.parse_known_args(args)
        if unknown and unknown[0].startswith("-"):
            self._require_known(unknown[0].partition("=")[0])
        if unknown:
            raise InputError(f"unexpected argument '{unknown[0]}'")
        return namespace

    def _require_known(self, flag: str) -> None:
        known = self._option_string_actions
        if flag in known:
            return
        group, dot, field = flag.removeprefix("--").partition(".")
        meant = alias(group) if "--config" in known and not dot else None
        if meant and (meant.startswith(_OVERRIDE) or meant in known):
            suggestion = meant
        elif dot and "--config" in known:
            path = field if closest(group, ["config"]) else f"{group}.{field}"
            suggestion = _OVERRIDE + path
        else:
            # Without the dashes, which make any two short names alike.
            near = closest(flag[2:], (name[2:] for name in known if name.startswith("--")))
            suggestion = near and f"--{near}"
        hint = f"Did you mean {suggestion}?" if suggestion else "See --help."
        raise InputError(f"unknown flag {flag}. {hint}")
