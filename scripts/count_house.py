"""Counts what keeps the package readable, and fails where a limit is passed.

    python scripts/count_house.py          # the counts as JSON
    python scripts/count_house.py --check  # exit code 1 where a hard limit is passed

A riddle is a docstring that begins with a word such as "Of" or "Whether" and so cannot be read
without the name it belongs to. Circles are counted between files, over every import: those for
types and those inside functions too.
"""

import argparse
import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "jaxpretrain"
MAX_FILES = 15
MAX_KNOBS = 90
"""The largest number of fields of a run."""
RIDDLE = re.compile(r"^(Of|That|As|By|From|What|Whether|How|Which|Those|One after|Told|So)\b")
FIELD = re.compile(r"^  ([a-z_0-9.]+) = ", re.MULTILINE)


@dataclass(frozen=True)
class Counts:
    """The counts of a package."""

    circles: list[list[str]]
    """Groups of modules that import one another."""
    files_in_largest_folder: int
    """Modules of the folder that has most, `__init__.py` not counted."""
    crowded_folders: dict[str, int]
    """Folders with more than 15 modules."""
    longest_file: int
    """Lines."""
    lines: int
    """Lines of all modules."""
    public_docstrings: int
    riddle_percent: float
    """Share of public docstrings that are riddles."""
    imports_inside_functions: int
    any_annotations: int
    """Uses of the name `Any`."""
    knobs: int
    """Leaf fields that `--help_config` prints for configs/olmo7b.py."""


def count_house(package: Path = PACKAGE) -> Counts:
    """Returns the counts of the package in a folder."""
    paths = sorted(package.rglob("*.py"))
    trees = {path: ast.parse(path.read_text()) for path in paths}
    sizes = [len(path.read_text().splitlines()) for path in paths]
    folders: dict[str, int] = {}
    for path in paths:
        if path.name != "__init__.py":
            folder = path.parent.relative_to(package.parent).as_posix()
            folders[folder] = folders.get(folder, 0) + 1
    texts = [text for tree in trees.values() for text in public_docstrings(tree)]
    riddles = sum(bool(RIDDLE.match(text)) for text in texts)
    return Counts(
        circles=find_circles(import_graph(package, trees)),
        files_in_largest_folder=max(folders.values()),
        crowded_folders={name: n for name, n in folders.items() if n > MAX_FILES},
        longest_file=max(sizes),
        lines=sum(sizes),
        public_docstrings=len(texts),
        riddle_percent=round(100 * riddles / max(len(texts), 1), 1),
        imports_inside_functions=sum(map(count_inner_imports, trees.values())),
        any_annotations=sum(
            isinstance(node, ast.Name) and node.id == "Any"
            for tree in trees.values()
            for node in ast.walk(tree)
        ),
        knobs=count_knobs(package.parent),
    )


def public_docstrings(tree: ast.AST) -> Iterator[str]:
    """Yields the docstrings of public functions, classes, fields and constants."""
    for node in ast.walk(tree):
        is_named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if is_named and not node.name.startswith("_") and (text := ast.get_docstring(node)):
            yield text
        if not isinstance(node, ast.ClassDef | ast.Module):
            continue
        for field, below in zip(node.body, node.body[1:], strict=False):
            match field, below:
                case ast.Assign() | ast.AnnAssign(), ast.Expr(ast.Constant(str() as text)):
                    yield text


def count_inner_imports(tree: ast.AST) -> int:
    """Returns the number of import statements inside the functions of a module."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    found = {
        id(inner)
        for function in functions
        for inner in ast.walk(function)
        if isinstance(inner, ast.Import | ast.ImportFrom)
    }
    return len(found)


def import_graph(package: Path, trees: dict[Path, ast.Module]) -> dict[str, set[str]]:
    """Returns which modules of the package each of its modules imports."""
    names = {path: _dotted(path, package) for path in trees}
    known = set(names.values())
    graph: dict[str, set[str]] = {name: set() for name in known}
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parents = path.relative_to(package.parent).parent.parts
                    above = parents[: len(parents) - node.level + 1]
                    base = ".".join([*above, *([base] if base else [])])
                full = [f"{base}.{alias.name}" for alias in node.names]
                targets = [name if name in known else base for name in full]
            else:
                continue
            graph[names[path]].update(t for t in targets if t in known and t != names[path])
    return graph


def _dotted(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def find_circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Returns the groups of nodes that can reach one another, each sorted."""
    reach = {name: _reachable(graph, name) for name in graph}
    groups = {
        tuple(sorted({name} | {other for other in reach[name] if name in reach[other]}))
        for name in graph
    }
    return sorted(list(group) for group in groups if len(group) > 1)


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found, queue = set(), [start]
    while queue:
        new = graph[queue.pop()] - found
        found |= new
        queue.extend(new)
    return found


def count_knobs(root: Path) -> int:
    """Returns the number of fields that a run of OLMo-7B can set on its command line."""
    command = [sys.executable, "-m", "jaxpretrain.main", "--config=configs/olmo7b.py"]
    done = subprocess.run(
        [*command, "--help_config"], cwd=root, capture_output=True, text=True, check=True
    )
    fields = FIELD.findall(done.stdout)
    # A choice of a class is a way to its fields and no field of a run by itself.
    groups = {name.rpartition(".")[0] for name in fields}
    return len(set(fields) - groups)


def main() -> int:
    """Prints the counts as JSON; returns 1 where a hard limit is passed and that was asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="fail where a hard limit is passed")
    check = parser.parse_args().check
    counts = count_house()
    print(json.dumps(asdict(counts), indent=1))
    problems = [f"circle of imports: {', '.join(group)}" for group in counts.circles]
    problems += [
        f"{name}: {n} files, above {MAX_FILES}" for name, n in counts.crowded_folders.items()
    ]
    if counts.knobs > MAX_KNOBS:
        problems.append(f"{counts.knobs} fields of a run, above {MAX_KNOBS}")
    for problem in problems if check else []:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if check and problems else 0


if __name__ == "__main__":
    sys.exit(main())
