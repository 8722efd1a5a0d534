"""Changes one operator or constant at a time and asks whether the mirrored test file notices.

    python scripts/mutants.py --each=5 --seed=0                       # the core modules: an hour
    python scripts/mutants.py --each=20 jaxpretrain/train/stages.py   # one module

Works on copies; the checkout is never changed. The draws of a module depend on the seed and on the
module alone. Prints JSON: the share of changes that were noticed, the changes that were not, and
all of them, each with its place.
"""

import argparse
import ast
import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("jaxpretrain", "configs", "scripts", "tests", "pyproject.toml")
CORE = (
    "jaxpretrain/config/durations.py",
    "jaxpretrain/config/overrides.py",
    "jaxpretrain/data/loader.py",
    "jaxpretrain/data/token_files/masks.py",
    "jaxpretrain/data/text/mixing.py",
    "jaxpretrain/data/order/order.py",
    "jaxpretrain/data/order/permutations.py",
    "jaxpretrain/data/token_files/tokens.py",
    "jaxpretrain/models/losses.py",
    "jaxpretrain/models/masks.py",
    "jaxpretrain/diagnosis/clock.py",
    "jaxpretrain/diagnosis/remaining.py",
    "jaxpretrain/diagnosis/statistics.py",
    "jaxpretrain/optim/schedules.py",
    "jaxpretrain/checkpoints/orbax.py",
    "jaxpretrain/parallel/mesh.py",
    "jaxpretrain/train/stages.py",
    "jaxpretrain/train/step.py",
)
SECONDS = 60
"""A test run that takes longer by this, and by a factor of five, than without a change counts as
failed: the change has made it endless."""

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True)
class Mutant:
    """One change of a module."""

    module: str
    """Path of the module in the repository."""
    line: int
    """Line of the change, from 1."""
    change: str
    """The expression before and after."""
    source: str
    """The whole changed module."""


@dataclass(frozen=True)
class Outcome:
    """The result of one change."""

    module: str
    line: int
    change: str
    noticed: bool
    """True where a test failed or did not end."""


def mirrored_test(module: str) -> str:
    """Returns the path of the test file that mirrors a module."""
    path = Path(module)
    return str(Path("tests", *path.parts[1:-1], f"test_{path.name}"))


def find_mutants(module: str, source: str) -> list[Mutant]:
    """Returns every change of one operator or constant of a module."""
    tree = ast.parse(source)
    found = []
    for number, node in enumerate(_walk(tree)):
        for changed in _changes(node):
            other = copy.deepcopy(tree)
            twin = next(n for i, n in enumerate(_walk(other)) if i == number)
            before = ast.unparse(twin)
            for name, value in changed.items():
                setattr(twin, name, value)
            change = f"{before} -> {ast.unparse(twin)}"
            found.append(Mutant(module, node.lineno, change, ast.unparse(other)))
    return found


def _walk(node: ast.AST) -> Iterator[ast.expr]:
    """Yields the expressions that compute: no annotations, decorators, docstrings or messages.

    Left out is also `strict=True` of zip, which guards against mistakes in the module itself.
    """
    if isinstance(node, ast.keyword) and node.arg == "strict":
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "type_params", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr | ast.Raise):
                continue
            if isinstance(child, ast.BinOp | ast.BoolOp | ast.Compare | ast.Constant):
                yield child
            yield from _walk(child)


def _changes(node: ast.expr) -> list[dict[str, object]]:
    """Returns the fields to change, one dict for each change of a node."""
    match node:
        case ast.BinOp() | ast.BoolOp() if type(node.op) in SWAPS:
            return [{"op": SWAPS[type(node.op)]()}]
        case ast.Compare(ops=[op]) if type(op) in SWAPS:
            return [{"ops": [SWAPS[type(op)]()]}]
        case ast.Constant(bool() as value):
            return [{"value": not value}]
        case ast.Constant(int() as value):
            return [{"value": value + 1}]
        case ast.Constant(float() as value):
            return [{"value": value * 2 + 0.125}]
    return []


def is_noticed(folder: Path, mutant: Mutant, seconds: float) -> bool:
    """Runs the mirrored test on a changed copy of the repository, for so long at most."""
    path = folder / mutant.module
    original = path.read_text()
    path.write_text(mutant.source)
    try:
        return not passes(folder, mirrored_test(mutant.module), seconds)
    finally:
        path.write_text(original)


def passes(folder: Path, test: str, seconds: float | None = None) -> bool:
    """Returns whether a test file passes in a copy of the repository before a time is over."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    quiet = subprocess.DEVNULL
    # A session of its own: the commands that tests start end with it.
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=quiet, stderr=quiet, start_new_session=True
    ) as process:
        try:
            return process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def try_mutants(mutants: Sequence[Mutant]) -> list[Outcome]:
    """Returns the outcome of each change, in order; all of them in one copy of the repository."""
    outcomes = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in COPIED:
            if (ROOT / part).is_dir():
                ignore = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / part, folder / part, ignore=ignore)
            else:
                shutil.copy(ROOT / part, folder / part)
        seconds = {}
        for module in dict.fromkeys(mutant.module for mutant in mutants):
            start = time.monotonic()
            if not passes(folder, mirrored_test(module)):
                raise SystemExit(f"error: {mirrored_test(module)} fails without any change")
            seconds[module] = SECONDS + 5 * (time.monotonic() - start)
        for mutant in mutants:
            noticed = is_noticed(folder, mutant, seconds[mutant.module])
            outcomes.append(Outcome(mutant.module, mutant.line, mutant.change, noticed))
            verdict = "noticed" if noticed else "SURVIVED"
            print(f"{verdict} {mutant.module}:{mutant.line} {mutant.change}", file=sys.stderr)
    return outcomes


def main() -> None:
    """Draws changes of each module, tries them and prints their outcomes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", default=CORE, help="paths of modules")
    parser.add_argument("--each", type=int, default=5, help="changes of each module")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws")
    parser.add_argument("--jobs", type=int, default=2, help="copies that are tested at once")
    flags = parser.parse_args()
    by_module = []
    for module in flags.modules:
        found = find_mutants(module, (ROOT / module).read_text())
        draw = random.Random(f"{flags.seed} {module}")
        by_module.append(draw.sample(found, min(flags.each, len(found))))
    shares = [
        [m for part in by_module[job :: flags.jobs] for m in part] for job in range(flags.jobs)
    ]
    with ThreadPoolExecutor(flags.jobs) as pool:
        outcomes = [outcome for part in pool.map(try_mutants, shares) for outcome in part]
    survivors = [outcome for outcome in outcomes if not outcome.noticed]
    num_noticed = len(outcomes) - len(survivors)
    document = {
        "seed": flags.seed,
        "tried": len(outcomes),
        "noticed": num_noticed,
        "share": round(num_noticed / max(len(outcomes), 1), 3),
        "survivors": [asdict(outcome) for outcome in survivors],
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
