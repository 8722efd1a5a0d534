from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

import pytest

from jaxpretrain.config import schema
from jaxpretrain.config.ranges import Positive
from jaxpretrain.config.schema import Mark, complaint, field_types, marks_at, type_text


@dataclass(frozen=True)
class WarmupCosine:
    peak: float = 1.0


@dataclass(frozen=True)
class Constant:
    value: float = 1.0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("WarmupCosine", "warmup_cosine"),
        ("AdamW", "adamw"),
        ("SGD", "sgd"),
        ("HFTokenizer", "hf_tokenizer"),
        ("LinearMAE", "linear_mae"),
        ("TokenV2Files", "token_v2_files"),
        ("Sapiens1B", "sapiens1b"),
    ],
)
def test_snake_case(name, expected):
    assert schema.snake_case(type(name, (), {})) == expected


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("true", bool, True),
        ("False", bool, False),
        ("-3", int, -3),
        ("1_000", int, 1000),
        ("2e3", int, 2000),
        ("9007199254740993", int, 9007199254740993),
        ("1e-3", float, 0.001),
        ("2", float, 2.0),
        ("", str, ""),
        ("a=b", str, "a=b"),
        ("none", int | None, None),
        ("none", Optional[int], None),  # noqa: UP045
        ("none", str | None, None),
        ("none", Literal["none"] | None, "none"),
        ("3", int | str, 3),
        ("3", str | int, 3),
        ("3 steps", int | str, "3 steps"),
        ("1.5", Union[int, float], 1.5),  # noqa: UP007
        ("auto", int | Literal["auto"], "auto"),
        ("2", Literal[1, 2], 2),
        ("a,b", tuple[str, ...], ("a", "b")),
        ("1, 2", tuple[int, ...], (1, 2)),
        ("", tuple[int, ...], ()),
        ("1,2.5", tuple[int, float], (1, 2.5)),
        ("auto", tuple[int, ...] | Literal["auto"], "auto"),
        ("constant", WarmupCosine | Constant, Constant()),
        ("none", WarmupCosine | None, None),
        ("constant,constant", tuple[Constant, ...], (Constant(), Constant())),
    ],
)
def test_parse_gives_the_value_and_its_type(text, hint, value):
    parsed = schema.parse(text, hint)
    assert parsed == value
    assert type(parsed) is type(value)
    assert schema.member_of(parsed, hint) is not None


@pytest.mark.parametrize(
    ("text", "hint", "message"),
    [
        ("1", bool, "expected one of true, false"),
        ("1.5", int, "expected int"),
        ("", int, "expected int"),
        ("nan", int, "expected int"),
        ("1e999999999", int, "expected int"),
        ("nan", float, "expected finite float"),
        ("inf", float, "expected finite float"),
        ("x", float | None, "expected finite float or none"),
        ("x", int | Literal["auto"], "expected int or auto"),
        ("x", Literal["a", "b"], "expected one of a, b"),
        ("x", Literal["a"] | None, "expected one of a, none"),
        ("cosine", WarmupCosine | Constant, "expected one of warmup_cosine, constant"),
        ("1,x", tuple[int, ...], "expected int,..."),
        ("1,2,3", tuple[int, int], "expected int,int"),
        ("x", tuple[int | None, ...], "expected (int | none),..."),
        ("x", dict[str, int], "expected {name: int}"),
    ],
)
def test_parse_says_what_was_expected(text, hint, message):
    with pytest.raises(ValueError) as error:
        schema.parse(text, hint)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (True, bool),
        (-7, int | None),
        (None, int | None),
        (1e-5, float),
        (0.1 + 0.2, float),
        ("auto", int | Literal["auto"]),
        ((), tuple[int, ...]),
        ((1, 2), tuple[int, int]),
        (("a", "b"), tuple[str, ...]),
        (Constant(), WarmupCosine | Constant),
    ],
)
def test_parse_reads_what_value_text_writes(value, hint):
    assert schema.parse(schema.value_text(value), hint) == value


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (True, int),
        (1, bool),
        (1.0, int),
        (float("nan"), float),
        (float("-inf"), float),
        (True, float),
        ("1", int | None),
        (None, int),
        (True, Literal[1]),
        ([1], tuple[int, ...]),
        ((1,), tuple[int, int]),
        ({1: 1}, dict[str, int]),
        (Constant, WarmupCosine | Constant),
    ],
)
def test_member_of_is_strict(value, hint):
    assert schema.member_of(value, hint) is None


def test_an_int_may_stand_where_a_float_is_wanted():
    assert schema.member_of(1, float) is float


@pytest.mark.parametrize(
    "hint", [list[int], Any, Path, tuple, dict[int, str], int | list[int], tuple[Path, ...], bytes]
)
def test_a_field_of_any_other_type_is_refused_by_name(hint):
    with pytest.raises(TypeError, match=r"Odd\.field: a config field cannot have the type"):
        schema.field_types(make_dataclass("Odd", [("field", hint)]))


@dataclass(frozen=True)
class Folder:
    root: Annotated[str | None, Mark.NO_EFFECT] = None
    size: int = 8


@dataclass(frozen=True)
class Mixed:
    sources: dict[str, Folder] = field(default_factory=dict)
    stages: tuple[Folder, ...] = ()
    pair: tuple[Folder, Annotated[int, Mark.SAMPLE_ORDER]] = (Folder(), 1)


@dataclass(frozen=True)
class Config:
    data: Annotated[Folder | Mixed, Mark.IDENTITY]
    size: Annotated[int, Positive, Mark.NO_EFFECT] = 1
    every: int = 1


IS, NO, SO = Mark.IDENTITY, Mark.NO_EFFECT, Mark.SAMPLE_ORDER


@pytest.mark.parametrize(
    ("path", "marks"),
    [
        ("data", {IS}),
        ("data.class", {IS}),
        ("data.root", {IS, NO}),
        ("data.size", {IS}),
        ("data.sources.web.root", {IS, NO}),
        ("data.sources.web", {IS}),
        ("data.stages.3.root", {IS, NO}),
        ("data.pair.1", {IS, SO}),
        ("data.of_another_version.root", {IS}),
        ("size", {NO}),
        ("every", set()),
        ("unknown", set()),
    ],
)
def test_a_path_has_the_marks_of_its_fields(path: str, marks: set[Mark]):
    assert marks_at(Config, path) == marks


def test_a_mark_is_no_rule_and_no_text():
    hint = field_types(Config)["size"]
    assert type_text(hint) == "int (positive)"
    assert complaint(3, hint) == "" and complaint(0, hint) == "must be positive"
