import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from jaxpretrain.config.documents import checked, parse_json, read_object
from jaxpretrain.config.errors import InputError


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
