import pytest

from jaxpretrain.config.errors import InputError, closest, nearest


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
