import re
from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.files import load_config

HEAD = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Experiment:
    size: str = "1b"
    seed: int = 0
"""


def write(folder: Path, body: str, name: str = "olmo.py") -> str:
    path = folder / name
    path.write_text(HEAD + body)
    return str(path)


def error_of(spec: str) -> str:
    with pytest.raises(InputError) as error:
        load_config(spec)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_get_config_makes_the_config(tmp_path):
    file = write(tmp_path, "def get_config(arg=None): return Experiment(size=arg or '1b')")
    assert load_config(file).size == "1b"
    assert load_config(f"{file}:7b").size == "7b"
    assert load_config(f"{file}:a:b").size == "a:b"


def test_a_changed_file_is_read_again_and_leaves_nothing_behind(tmp_path):
    assert load_config(write(tmp_path, "def get_config(): return Experiment(seed=1)")).seed == 1
    assert load_config(write(tmp_path, "def get_config(): return Experiment(seed=2)")).seed == 2
    assert [path.name for path in tmp_path.iterdir()] == ["olmo.py"]


def test_get_config_can_use_the_names_of_its_file_later(tmp_path):
    file = write(
        tmp_path, "def helper(): return 5\ndef get_config(): return Experiment(seed=helper())"
    )
    assert load_config(file).seed == 5


def test_a_missing_file_names_the_nearest_one(tmp_path):
    write(tmp_path, "", "olmo7b.py")
    spec = str(tmp_path / "olmo7.py")
    assert error_of(f"{spec}:x") == f"{spec}: no such file. Did you mean 'olmo7b.py'?"


def test_a_missing_directory_is_named(tmp_path):
    assert f"there is no directory {tmp_path / 'nowhere'}" in error_of(f"{tmp_path}/nowhere/x.py")


def test_a_directory_is_no_config(tmp_path):
    assert "no such file" in error_of(str(tmp_path))


def test_a_syntax_error_is_located(tmp_path):
    file = write(tmp_path, "def get_config(:\n")
    assert error_of(file).startswith(f"{file}:8: ")


@pytest.mark.parametrize(
    ("body", "argument", "message"),
    [
        ("", "", "defines no function get_config()"),
        ("get_config = 3", "", "defines no function get_config()"),
        ("def get_config(): return Experiment()", ":7b", "get_config takes no argument"),
        ("def get_config(arg): return Experiment()", "", "get_config needs an argument: "),
        ("def get_config(): raise ValueError('no\\nsize 9b')", "", ": no size 9b"),
        ("raise ValueError('at the top')", "", ": at the top"),
        ("def get_config(): return {}", "", "get_config must return a config, got dict"),
        ("def get_config(): return Experiment", "", "get_config must return a config, got type"),
        (
            "def get_config(): return Experiment(seed='x')",
            "",
            ": --config.seed: expected int, got 'x'",
        ),
    ],
)
def test_a_bad_config_ends_in_one_line_that_starts_with_its_file(tmp_path, body, argument, message):
    file = write(tmp_path, body)
    error = error_of(file + argument)
    assert error.startswith(file)
    assert message in error


def test_a_failure_inside_a_config_keeps_its_traceback(tmp_path):
    file = write(tmp_path, "def get_config(): return 1 / 0")
    with pytest.raises(ZeroDivisionError):
        load_config(file)


def test_a_config_may_be_named_like_a_module(tmp_path):
    body = "import json\ndef get_config(): return Experiment(size=json.dumps(None))"
    assert load_config(write(tmp_path, body, "json.py")).size == "null"


def test_a_bare_name_is_a_packaged_config(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert load_config("olmo_nano").model.d_model == 128
    assert load_config("olmo_ladder:150m").model.num_layers == 12
    write(tmp_path, "def get_config(): return Experiment(seed=7)", "olmo_nano.py")
    assert load_config("olmo_nano.py").seed == 7
    assert load_config("./olmo_nano.py").seed == 7


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("olmo_nan", "--config=olmo_nan: no such config. Did you mean 'olmo_nano'?"),
        ("qqq", "--config=qqq: no such config. The package brings nano_ladder, "),
        ("mine", "--config=mine: no such config. A file of your own needs its ending: mine.py"),
    ],
)
def test_another_bare_name_is_an_error(monkeypatch, tmp_path, name, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "def get_config(): return Experiment()", "mine.py")
    with pytest.raises(InputError, match=re.escape(message)):
        load_config(name)


def test_a_config_can_be_imported():
    from jaxpretrain.configs import olmo_nano

    assert olmo_nano.get_config().model.d_model == 128


@pytest.mark.parametrize(
    ("name", "renamed"), [("beta2", "optim.betas.1"), ("norm", None), ("unheard_of", None)]
)
def test_an_argument_of_an_earlier_version_says_what_is_written_now(tmp_path, name, renamed):
    """Not one whose values alone have changed: it is a mistake like any other."""
    file = write(tmp_path, f"def get_config(): return Experiment({name}=1)")
    with pytest.raises(InputError if renamed else TypeError, match=renamed or name):
        load_config(file)
