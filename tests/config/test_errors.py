import pytest

from jaxpretrain.config.errors import InputError, closest, extras, install, nearest


def test_an_input_error_is_one_line():
    assert str(InputError("first\n  second\tthird ")) == "first second third"


def test_nearest_names_the_closest_candidate_with_a_leading_blank():
    assert nearest("shedule", ["beta1", "schedule"]) == " Did you mean 'schedule'?"


def test_nearest_ignores_case():
    assert nearest("ADAM", ["sgd", "adamw"]) == " Did you mean 'adamw'?"


@pytest.mark.parametrize("candidates", [[], ["seed", "train"]])
def test_nothing_close_gives_no_hint(candidates):
    assert closest("xyz", candidates) is None
    assert nearest("xyz", candidates) == ""


def test_the_command_for_an_extra_names_what_it_requires():
    assert install("evals") == "pip install 'pyarrow>=26'"
    vision = install("vision")
    assert vision.startswith("pip install ") and "'pillow>=" in vision and "scikit-image" in vision


def test_requirements_are_sorted_by_their_extras(monkeypatch: pytest.MonkeyPatch):
    lines = [
        "numpy>=2",
        "tensorflow>=2; sys_platform == 'darwin'",
        "a>=1; extra == 'x-y'",
        'b[c]; extra == "z"',
    ]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: [*lines, "d; extra == 'z'"])
    assert extras() == {"x-y": ["a>=1"], "z": ["b[c]", "d"]}
