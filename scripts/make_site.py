"""Builds the site of the documentation: `make site`.

    python scripts/make_site.py
    python scripts/make_site.py --serve

The pages are those of README.md and docs/, with a reference that is made from the code: the fields
of all configs, the flags of all commands, the packaged configs. MkDocs makes the site of them in
build/site, and refuses links that lead nowhere.
"""

import argparse
import dataclasses
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

from jaxpretrain import api
from jaxpretrain.__main__ import COMMANDS
from jaxpretrain.config.describe import FieldInfo, fields_of
from jaxpretrain.config.schema import snake_case

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "build" / "site-pages"
COPIED = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "LICENSE")
FOLDERS = ("docs", "configs", "notebooks")


def main() -> int:
    """Builds the site; returns the exit code of MkDocs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--serve", action="store_true", help="show it on loopback, port 8000")
    flags = parser.parse_args()
    gather()
    how = ["serve", "--dev-addr=127.0.0.1:8000"] if flags.serve else ["build", "--clean"]
    command = [sys.executable, "-m", "mkdocs", *how, "--strict", "--quiet"]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    ).returncode


def gather() -> None:
    """Copies the pages to one folder, and makes those of the reference there."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(ROOT / name, PAGES / name, ignore=ignored)
    for name in COPIED:
        shutil.copy(ROOT / name, PAGES / name)
    readme = PAGES / "README.md"
    readme.write_text(readme.read_text().replace("](configs)", "](docs/reference/configs.md)"))
    for page in PAGES.rglob("*.md"):  # marks of scripts/docs_test.py, which only it understands
        page.write_text(re.sub(r"^```sh .*$", "```sh", page.read_text(), flags=re.MULTILINE))
    (PAGES / "site.css").write_text(".md-typeset table code { word-break: keep-all; }\n")
    reference = PAGES / "docs" / "reference"
    reference.mkdir()
    os.environ["COLUMNS"] = "80"
    for name, lines in (
        ("fields.md", fields_page()),
        ("commands.md", _commands()),
        ("configs.md", _configs()),
    ):
        (reference / name).write_text("\n".join(lines) + "\n")


def fields_page() -> Iterator[str]:
    """Yields the page of the fields of all classes that configs are written with."""
    yield "# Fields of configs\n"
    yield (
        "All fields of all classes that a config is made of, with types, defaults and meanings. "
        "`--help_config` prints those of one config, with its own values."
    )
    classes = [getattr(api, name) for name in api.__all__]
    configs = [cls for cls in classes if inspect.isclass(cls) and dataclasses.is_dataclass(cls)]
    for cls in sorted(configs, key=lambda cls: (cls.__name__ != "Experiment", cls.__name__)):
        yield f"\n## {cls.__name__}\n"
        yield f"`{snake_case(cls)}` on the command line. {inspect.cleandoc(cls.__doc__ or '')}\n"
        if rows := fields_of(cls):
            yield "| Field | Type | Default | Meaning |\n| --- | --- | --- | --- |"
            yield from map(_row, rows)


def _row(field: FieldInfo) -> str:
    cells = (
        f"`{field.path}`",
        _code(field.type_text),
        _code(field.value_text),
        shown(field.meaning),
    )
    return f"| {' | '.join(cells)} |"


def _code(text: str) -> str:
    return f"<code>{shown(text)}</code>" if text else ""


def shown(text: str) -> str:
    """Returns what shows a text in a table as it is, and what stands in backquotes as code."""
    text = escape(text, quote=False)
    for character, entity in {"|": "&#124;", "*": "&#42;", "_": "&#95;"}.items():
        text = text.replace(character, entity)
    return re.sub("`([^`]+)`", r"<code>\1</code>", text)


def _commands() -> Iterator[str]:
    """Yields the page of the flags of all commands."""
    yield "# Commands\n"
    yield "`jaxpretrain COMMAND` is short for `python -m jaxpretrain COMMAND`."
    for name, (module, purpose) in COMMANDS.items():
        text = importlib.import_module(f"jaxpretrain.{module}").make_parser().format_help()
        yield f"\n## {name}\n\n{purpose[:1].upper()}{purpose[1:]}.\n\n```text\n{text.rstrip()}\n```"


def _configs() -> Iterator[str]:
    """Yields the page of the packaged configs, by their docstrings."""
    yield "# Packaged configs\n"
    yield "`jaxpretrain train --config=NAME` takes each of these by its name."
    for path in sorted((ROOT / "configs").glob("*.py")):
        found = re.match(r'\s*r?"""(.*?)"""', path.read_text(), re.DOTALL)
        text = found[1].rstrip() if found else ""
        link = f"[{path.name}](../../configs/{path.name})"
        yield f"\n## {path.stem}\n\n{link}\n\n```text\n{text}\n```"


if __name__ == "__main__":
    sys.exit(main())
