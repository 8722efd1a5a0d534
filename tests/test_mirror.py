"""The tests mirror the package: `jaxpretrain/a/b.py` is tested in `tests/a/test_b.py`."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxpretrain"

# Paths in the package, each with the reason. A folder's `__init__.py` holds a docstring alone.
WITHOUT_TESTS: frozenset[str] = frozenset()


def mirrored(module: Path) -> Path:
    """The test file of a module."""
    inside = module.relative_to(PACKAGE)
    return ROOT / "tests" / inside.parent / f"test_{inside.name}"


def test_every_module_has_a_test_file_of_its_name():
    modules = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    assert len(modules) > 100
    missing = {m.relative_to(PACKAGE).as_posix() for m in modules if not mirrored(m).exists()}
    assert missing == WITHOUT_TESTS
