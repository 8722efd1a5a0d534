import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import (
    ABSENT,
    checked,
    diff,
    finite,
    from_dict,
    parse_json,
    read_object,
    to_dict,
)


@dataclass(frozen=True)
class Constant:
    value: float = 1.0


@dataclass(frozen=True)
class WarmupCosine:
    peak: float = 1e-3
    warmup: int | str = 10

    def __post_init__(self):
        if self.peak < 0:
            raise ValueError("peak must not be negative")


@dataclass(frozen=True)
class Optimizer:
    schedule: Constant | WarmupCosine = Constant()
    average: Constant | None = None
    clip: float | None = 1.0


@dataclass(frozen=True)
class Experiment:
    seed: int = 0
    mode: Literal["a", "b"] = "a"
    optim: Optimizer = Optimizer()
    shape: tuple[int, int] = (1, 2)
    tags: tuple[str, ...] = ()
    stages: tuple[Constant | WarmupCosine, ...] = ()
    nested: tuple[tuple[int, ...], ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    sets: dict[str, Constant] = field(default_factory=dict)
    layers: tuple[int, ...] | Literal["all"] = "all"


FULL = Experiment(
    seed=2**60 + 1,
    mode="b",
    optim=Optimizer(WarmupCosine(0.1 + 0.2, "5 steps"), Constant(1), None),
    shape=(3, 4),
    tags=("x", "y,z"),
    stages=(WarmupCosine(), Constant(2.0)),
    nested=((), (1, 2)),
    weights={"c4": 1, "a.b": 0.5},
    sets={"pile": Constant(3.0)},
    layers=(0, 5),
)


@pytest.mark.parametrize("config", [Experiment(), FULL])
def test_a_config_comes_back_from_json_exactly(config):
    restored = from_dict(Experiment, json.loads(json.dumps(to_dict(config), allow_nan=False)))
    assert restored == config
    assert repr(restored) == repr(config)  # Tells 1 from 1.0.


def test_a_choice_is_written_by_name_and_a_plain_group_is_not():
    data = to_dict(FULL)
    assert data["optim"]["schedule"]["class"] == "warmup_cosine"
    assert [stage["class"] for stage in data["stages"]] == ["warmup_cosine", "constant"]
    assert "class" not in data
    assert "class" not in data["optim"]


def test_an_invalid_config_is_not_written():
    with pytest.raises(InputError, match=r"^--config\.seed: expected int, got 'x'$"):
        to_dict(replace(FULL, seed="x"))


def test_missing_fields_take_their_defaults():
    assert from_dict(Experiment, {}) == Experiment()
    data = {"optim": {"schedule": {"class": "warmup_cosine"}, "average": {}}}
    assert from_dict(Experiment, data).optim == Optimizer(WarmupCosine(), Constant())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sead": 1}, "--config.sead: no such field in Experiment. Did you mean 'seed'?"),
        (
            {"optim": {"clp": 1}},
            "--config.optim.clp: no such field in Optimizer. Did you mean 'clip'?",
        ),
        ({"seed": 1.0}, "--config.seed: expected int, got 1.0"),
        ({"seed": None}, "--config.seed: expected int, got None"),
        ({"shape": [1, 2, 3]}, "--config.shape: expected int,int, got [1, 2, 3]"),
        ({"nested": [[1], ["x"]]}, "--config.nested.1.0: expected int, got 'x'"),
        ({"weights": {"c4": "x"}}, "--config.weights.c4: expected finite float, got 'x'"),
        ({"optim": 3}, "--config.optim: expected optimizer, got 3"),
        (
            {"optim": {"schedule": {"class": "cosine"}}},
            "--config.optim.schedule=cosine: expected one of constant, warmup_cosine",
        ),
        (
            {"optim": {"schedule": {"value": 1}}},
            "--config.optim.schedule: expected one of constant, warmup_cosine, got {'value': 1}",
        ),
        (
            {"stages": [{"class": "constant", "peak": 1}]},
            "--config.stages.0.peak: no such field in Constant. Its fields are value.",
        ),
        (
            {"optim": {"schedule": {"class": "warmup_cosine", "peak": -1}}},
            "--config.optim.schedule: peak must not be negative",
        ),
    ],
)
def test_reading_is_as_strict_as_overriding(data, message):
    with pytest.raises(InputError) as error:
        from_dict(Experiment, data)
    assert str(error.value) == message


def test_equal_configs_do_not_differ():
    assert diff(to_dict(FULL), to_dict(FULL)) == []


def test_differences_are_leaves_in_the_order_of_their_paths():
    changed = to_dict(
        Experiment(
            seed=FULL.seed,
            mode="a",
            optim=Optimizer(Constant(1.0), Constant(1), None),
            shape=(3, 5),
            tags=FULL.tags,
            stages=FULL.stages[:1],
            nested=FULL.nested,
            weights={"a.b": 0.5},
            sets=FULL.sets,
            layers="all",
        )
    )
    assert diff(to_dict(FULL), changed) == [
        ("layers", [0, 5], "all"),
        ("mode", "b", "a"),
        ("optim.schedule.class", "warmup_cosine", "constant"),
        ("optim.schedule.peak", 0.1 + 0.2, ABSENT),
        ("optim.schedule.value", ABSENT, 1.0),
        ("optim.schedule.warmup", "5 steps", ABSENT),
        ("shape", [3, 4], [3, 5]),
        ("stages.1.class", "constant", ABSENT),
        ("stages.1.value", 2.0, ABSENT),
        ("weights.c4", 1, ABSENT),
    ]


def test_indices_are_ordered_as_numbers():
    a = {"stages": [{"x": 0} for _ in range(11)]}
    b = {"stages": [{"x": 1} for _ in range(11)]}
    assert [path for path, _, _ in diff(a, b)] == [f"stages.{index}.x" for index in range(11)]


def test_none_and_absent_are_told_apart():
    assert diff({"a": None}, {}) == [("a", None, ABSENT)]


def test_an_emptied_container_is_a_difference():
    assert diff({"tags": []}, {"tags": ["x"]}) == [("tags", [], ["x"])]
    assert diff({"sets": {}}, {"sets": {"a": 1}}) == [("sets.a", ABSENT, 1)]


@dataclass(frozen=True)
class File:
    name: str
    size: int


@dataclass(frozen=True)
class Document:
    files: tuple[File, ...]
    rate: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


def test_a_value_is_what_the_text_says():
    assert parse_json('{"a": [1, 2.5, null, true, "x"]}') == {"a": [1, 2.5, None, True, "x"]}
    assert parse_json(b'\xef\xbb\xbf{"a": "\xf0\x9f\x99\x82"}') == {"a": "🙂"}
    assert parse_json(r'"\ud83d\ude42"') == "🙂"


def test_whole_numbers_beyond_64_bits_are_no_counts():
    exact, large, infinite = parse_json(f"[{2**53 + 1}, {10**30}, {10**400}]")
    assert (type(exact), exact) == (int, 2**53 + 1)
    assert (type(large), large, infinite) == (float, 1e30, math.inf)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe{}", b'"\xed\xa0\x80"', b'"a\x00"', b"[" * 100_000, b'"\\ud800"', b"1 2"],
)
def test_what_is_no_json_is_a_value_error(content: bytes):
    with pytest.raises(ValueError):
        parse_json(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "is not a JSON object; make it again"),
        (b"{", "is not valid JSON"),
        (b'{"a": "\\ud800"}', "is not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_without_an_object_is_named(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"x\.json: .*{message}"):
        read_object(tmp_path / "x.json", "make it again")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"x\.json: no such file; make it$"):
        read_object(tmp_path / "x.json", "make it")
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)$"):
        read_object(tmp_path)


def test_a_document_becomes_what_is_read_of_it():
    document = {
        "files": [{"name": "a", "size": 1, "colour": "red"}],
        "rate": 1,
        "extra": {"list": [1, {"x": None}]},
        "sizes": {"a": 3},
        "unknown": [],
    }
    extra = {"list": [1, {"x": None}]}
    assert checked(Document, document, "x.json") == Document((File("a", 1),), 1, extra, {"a": 3})


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "x.json: files: is missing"),
        ({"files": None}, "x.json: files: expected a list, got None"),
        ({"files": [{"name": "a"}]}, "x.json: files.0.size: is missing"),
        (
            {"files": [{"name": {"a": 1}, "size": 1}]},
            "x.json: files.0.name: expected a text, got {'a'",
        ),
        (
            {"files": [{"name": "a", "size": True}]},
            "x.json: files.0.size: expected a whole number, got True",
        ),
        (
            {"files": [{"name": "a", "size": 1e30}]},
            "x.json: files.0.size: expected a whole number, got 1e+30",
        ),
        ({"files": [], "rate": "1"}, "x.json: rate: expected a number or null, got '1'"),
        ({"files": [], "rate": math.inf}, "x.json: rate: expected a number or null, got inf"),
        ({"files": [], "extra": [1]}, "x.json: extra: expected an object, got [1]"),
        ({"files": [], "sizes": {"a": [1]}}, "x.json: sizes.a: expected a whole number, got [1]"),
        ({"class": ["x"]}, "x.json=['x']: expected one of document"),
    ],
)
def test_a_value_of_another_type_is_named(document: dict[str, Any], message: str):
    with pytest.raises(InputError) as error:
        checked(Document, document, "x.json")
    assert str(error.value).startswith(message)


def test_numbers_that_json_has_not_become_none_at_any_depth():
    values = {"a": [1.5, math.nan, {"b": -math.inf}], "c": math.inf, "d": "nan", "e": 2}
    assert finite(values) == {"a": [1.5, None, {"b": None}], "c": None, "d": "nan", "e": 2}
