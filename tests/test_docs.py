"""README.md, docs/ and the notebooks: their blocks can be run, their links lead somewhere."""

import io
import json
import re
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from jaxpretrain.config.errors import InputError
from scripts import docs_test, make_site
from scripts.make_site import shown

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

PAGE = """# Title
<!-- setup
touch a
-->
```sh short --config.seed=1
jaxpretrain train --config=olmo_nano
```
```sh fails
false
```
```
error: no ... here
```
```python
a = 1
```
```
only text
```
"""


def test_the_blocks_of_a_page_are_read_with_their_marks() -> None:
    setup, short, fails, python = docs_test.read_page("a.md", PAGE)
    assert (setup.kind, setup.text) == ("setup", "touch a\n")
    assert (short.kind, short.flags, short.line) == ("short", "--config.seed=1", 5)
    assert (fails.kind, fails.expected) == ("fails", "error: no ... here\n")
    assert (python.kind, python.text) == ("python", "a = 1\n")


def test_a_script_is_split_into_whole_commands() -> None:
    script = "# first\na \\\n  b\nfor i in 1 2; do\n    c\ndone\ncat <<'END'\nd\nEND\n"
    commands = docs_test.split_commands(script)
    assert [command.splitlines()[-1] for command in commands] == ["  b", "done", "END"]
    with pytest.raises(InputError):
        docs_test.split_commands("if true; then\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_blocks_that_can_run_and_links_that_exist(page: Path) -> None:
    text = page.read_text()
    for block in docs_test.read_page(page.name, text):
        assert block.kind in ("run", "short", "parse", "fails", "setup", "python"), block.title
        if block.kind == "python":
            compile(block.text, block.title, "exec")
    for target in re.findall(r"\]\((?!https?:)([^)]*)\)", text):
        name, _, heading = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not heading or heading in anchors(file.read_text()), target


def test_the_map_names_every_module_in_the_row_of_its_folder() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)/` \| (.*) \|$", text, re.M))
    package = ROOT / "jaxpretrain"
    paths = [path.relative_to(package) for path in package.glob("*/**/*.py")]
    modules = [path for path in paths if not path.stem.startswith("__")]
    assert len(modules) > 150
    missing = [m.as_posix() for m in modules if f"`{m.stem}`" not in rows[m.parts[0]]]
    assert missing == []


def anchors(text: str) -> set[str]:
    """The anchors of the headings of a page, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", prose, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_a_notebook_is_one_script_without_stored_outputs() -> None:
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        text = notebook.read_text()
        compile(docs_test.notebook_script(text), notebook.name, "exec")
        assert '"outputs": []' in text


def test_a_command_over_two_lines_is_checked_as_one(tmp_path: Path):
    docs_test._check_command("jaxpretrain report \\\n    runs/a \\\n    --csv=a.csv", tmp_path)
    with pytest.raises(InputError, match="unknown flag --cvs"):
        docs_test._check_command("jaxpretrain report runs/a \\\n    --cvs=a.csv", tmp_path)


def _nav(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        else:
            for inside in entry.values():
                yield from [inside] if isinstance(inside, str) else _nav(inside)


def test_every_page_has_its_place_on_the_site() -> None:
    nav = set(_nav(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    pages = {page.relative_to(ROOT).as_posix() for page in PAGES}
    assert pages <= nav
    made = {"docs/reference/commands.md", "docs/reference/fields.md", "docs/reference/configs.md"}
    assert nav - pages == made | {"CHANGELOG.md"}


def test_names_of_metrics_are_on_their_page() -> None:
    """Those of a run that was kept, with the names of its sets and sources left open."""
    text = (ROOT / "docs" / "metrics.md").read_text()
    known = {name for row in text.splitlines() for name in re.findall(r"`([a-z_]+/[^`]*)`", row)}
    patterns = [
        re.sub(r"[A-Z]+", "[^/]+", re.escape(name).replace(r"\.\.\.", ".+")) for name in known
    ]
    with tarfile.open(ROOT / "tests" / "golden" / "run_c1d242c.tar.xz") as archive:
        lines = [
            line
            for member in archive.getmembers()
            if member.name.endswith(("metrics.jsonl", "signals.jsonl"))
            for line in (archive.extractfile(member) or io.BytesIO()).read().splitlines()
        ]
    names = {name for line in lines for name in json.loads(line)} - {"step", "time"}
    assert len(names) > 30
    without_errors = {name.removesuffix("_stderr").removesuffix("_random_init") for name in names}
    unknown = [n for n in without_errors if not any(re.fullmatch(p, n) for p in patterns)]
    assert sorted(unknown) == []


def test_cells_of_the_reference_show_their_text_as_it_is() -> None:
    assert shown("a * b_c of `STEP|<n>_x`") == (
        "a &#42; b&#95;c of <code>STEP&#124;&lt;n&gt;&#95;x</code>"
    )
    rows = [row for row in make_site.fields_page() if row.startswith("| ")]
    assert len(rows) > 100 and not [row for row in rows if re.search("`[^`|]*&", row)]


def test_every_extra_is_on_the_page_of_the_installation() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    page = (ROOT / "docs" / "install.md").read_text()
    assert [name for name in extras if f"`{name}`" not in page] == []
