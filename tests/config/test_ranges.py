from dataclasses import dataclass, replace
from typing import Annotated, Literal

import pytest

from jaxpretrain.config import schema
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import apply_overrides, validate
from jaxpretrain.config.ranges import Between, NonNegative, Positive, above, at_least


@dataclass(frozen=True)
class Optimizer:
    beta: Annotated[float, Between(0, 1, "[)")] = 0.9
    decay: Annotated[float, NonNegative] = 0.1
    clip: Annotated[float, Positive] | None = 1.0
    size: Annotated[int, Positive] | Literal["auto"] | None = None
    devices: Annotated[int, Positive] | Literal[-1] = 1
    shots: tuple[Annotated[int, Positive], ...] = (1, 5)
    weights: dict[str, Annotated[float, NonNegative]] | None = None


@pytest.mark.parametrize(
    ("given", "inside", "outside"),
    [
        (Between(0, 1), [0, 0.5, 1], [-1e-9, 1.001, 2, -1]),
        (Between(0, 1, "[)"), [0.0, 0.999], [1.0, 1, -0.1]),
        (Between(0, 1, "(]"), [1e-30, 1], [0, 0.0, -1.0]),
        (Between(0, 1, "()"), [0.5], [0.0, 1.0]),
        (Positive, [1, 1e-30, 1e30, 2**63 - 1], [0, -1, 0.0]),
        (NonNegative, [0, 0.0, 7], [-1, -1e-30]),
        (at_least(3), [3, 4.0], [2, 2.9]),
        (above(1), [1.001, 2], [1, 0.0]),
    ],
    ids=str,
)
def test_a_range_holds_its_numbers_and_no_other(given: Between, inside, outside):
    assert [value for value in inside if given.complaint(value)] == []
    assert [given.complaint(value) for value in outside] == [f"must be {given}"] * len(outside)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (Positive, "positive"),
        (NonNegative, "0 or more"),
        (Between(0, 1), "from 0 to 1"),
        (Between(1, 2**24), "from 1 to 16777216"),
        (Between(0, 1, "[)"), "0 or more and below 1"),
        (Between(0, 1, "(]"), "above 0 and 1 or less"),
        (Between(0, 1, "()"), "above 0 and below 1"),
        (at_least(2), "2 or more"),
        (above(1), "above 1"),
        (Between(float("-inf"), 3), "3 or less"),
    ],
)
def test_a_range_is_said_in_words(given: Between, text: str):
    assert str(given) == text


def test_a_number_lies_in_the_range_as_devices_hold_it():
    """0.99999999999 is 1 in float32, where a decay of 1 divides by 0; 1e-50 is 0, 1e39 infinite."""
    below_1 = Between(0, 1, "[)").complaint(0.99999999999)
    assert below_1 == "must be 0 or more and below 1, also in float32, where it is 1"
    assert Positive.complaint(1e-50) == "must be positive, also in float32, where it is 0"
    assert Positive.complaint(1e39) == "must be positive, also in float32, where it is inf"
    assert Positive.complaint(2**63) == "must be positive and fit in 64 bits"


def test_a_range_is_about_numbers():
    assert not Positive.complaint("-1 steps")
    assert not Positive.complaint(None)
    assert not Positive.complaint(False)


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("beta", "1.5", "--config.beta=1.5: must be 0 or more and below 1"),
        ("beta", "1", "--config.beta=1: must be 0 or more and below 1"),
        ("decay", "-1", "--config.decay=-1: must be 0 or more"),
        ("decay", "nan", "--config.decay=nan: expected finite float"),
        ("clip", "0", "--config.clip=0: must be positive, or none"),
        ("size", "0", "--config.size=0: must be positive, or auto or none"),
        ("devices", "-2", "--config.devices=-2: must be positive, or -1"),
        ("shots", "1,0", "--config.shots=1,0: must be positive"),
        ("shots.1", "-5", "--config.shots.1=-5: must be positive"),
        ("weights.c4", "-2", "--config.weights.c4=-2: must be 0 or more"),
    ],
)
def test_an_override_outside_the_range_is_refused(field: str, text: str, message: str):
    with pytest.raises(InputError) as error:
        apply_overrides(Optimizer(weights={"c4": 1.0}), [(field, text)])
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": 1.0}, "--config.beta=1.0: must be 0 or more and below 1"),
        ({"decay": -1}, "--config.decay=-1: must be 0 or more"),
        ({"clip": 0.0}, "--config.clip=0.0: must be positive, or none"),
        ({"size": -3}, "--config.size=-3: must be positive, or auto or none"),
        ({"devices": 0}, "--config.devices=0: must be positive, or -1"),
        ({"shots": (3, 0)}, "--config.shots.1=0: must be positive"),
        ({"weights": {"a": 1.0, "b": -0.5}}, "--config.weights.b=-0.5: must be 0 or more"),
    ],
)
def test_a_config_built_in_python_is_checked_too(change: dict, message: str):
    with pytest.raises(InputError) as error:
        validate(replace(Optimizer(), **change))
    assert str(error.value) == message


def test_all_that_may_stand_beside_a_range_stays_legal():
    validate(replace(Optimizer(), beta=0, clip=None, size="auto", devices=-1, shots=()))
    changed = apply_overrides(Optimizer(), [("size", "auto"), ("devices", "-1"), ("clip", "none")])
    assert (changed.size, changed.devices, changed.clip) == ("auto", -1, None)


def test_help_says_the_range():
    types = schema.field_types(Optimizer)
    assert schema.type_text(types["beta"]) == "float (0 or more and below 1)"
    assert schema.type_text(types["size"]) == "int (positive) | auto | none"
    assert schema.type_text(types["shots"]) == "(int (positive)),..."
    assert schema.type_text(types["weights"]) == "{name: float (0 or more)} | none"
