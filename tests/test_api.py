import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxpretrain import api
from jaxpretrain.train.experiment import Experiment
from tests.test_layers import dataclasses_in

ROOT = Path(__file__).parents[1]


def test_every_class_of_a_config_is_promised():
    assert {cls.__name__ for cls in dataclasses_in(Experiment)} <= set(api.__all__)


@pytest.mark.parametrize("name", api.__all__)
def test_a_promised_name_is_there(name):
    value = getattr(api, name)
    assert getattr(value, "__name__", name) == name


def test_type_checkers_see_the_same_names_from_the_same_modules():
    tree = ast.parse(Path(api.__file__).read_text())
    (guarded,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == api._HOME_OF


def test_another_name_is_refused_with_the_nearest_one():
    with pytest.raises(AttributeError, match=r"no 'Triangluar'\. Did you mean 'Triangular'\?"):
        _ = api.Triangluar  # pyright: ignore[reportAttributeAccessIssue]


def test_a_name_costs_no_more_than_its_own_module():
    code = "import sys; from jaxpretrain.api import InputError; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "False\n"


def test_configs_and_docs_import_from_nowhere_else():
    sources = [*(ROOT / "configs").rglob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    found = {
        (path.name, line)
        for path in sources
        for line in re.findall(r"^(?:from|import) jaxpretrain\S*", path.read_text(), re.MULTILINE)
        if line != "from jaxpretrain.api"
    }
    assert len(sources) > 30
    assert found == set()


def test_the_test_of_configs_imports_as_configs_do():
    tree = ast.parse((ROOT / "tests" / "test_configs.py").read_text())
    found = {
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module != "jaxpretrain.api"
        for alias in node.names
    }
    assert {(module, name) for module, name in found if name in api.__all__} == set()
