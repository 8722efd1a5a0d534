import io
import json
from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.prepare.rows import Losses, Rows, divided

ROW = {"title": "A", "body": b"text \xc3\xa9", "score": 3, "none": None, "tags": ["x"]}


def test_a_template_takes_several_columns():
    rows = Rows(template="{title}: {{{score}}}\n{body}{none}", where=("score>=3",), id_key="title")
    assert rows.text_of(ROW, "text", "a:1") == "A: {3}\ntext é"
    assert sorted(rows.columns("text")) == ["body", "none", "score", "title"]
    assert rows.id_of(ROW, "a:1") == "A"


def test_without_a_template_the_key_holds_the_text():
    assert Rows().text_of(ROW, "body", "a:1") == "text é"
    assert Rows().columns("body") == {"body": "--text_key"}
    assert Rows().text_of({"body": None}, "body", "a:1") == ""  # as in parquet


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{title", "expected '}'"),
        ("{title:>9}", "write {NAME}"),
        ("{title!r}", "write {NAME}"),
        ("title", "names no column"),
        ("{}", "names no column"),
    ],
)
def test_a_template_of_another_form_is_refused(template: str, complaint: str):
    with pytest.raises(InputError, match=f"--template=.*{complaint}"):
        Rows(template=template)


@pytest.mark.parametrize(
    ("rows", "key", "complaint"),
    [
        (Rows(), "boddy", r"a:1: has no column 'boddy' .*--text_key. Did.*'body'"),
        (Rows(template="{titel}"), "text", r"no column 'titel'.*--template.*'title'"),
        (Rows(template="{tags}"), "text", "has a list in the column 'tags'"),
        (Rows(), "score", "has a number in the column 'score'"),
    ],
)
def test_a_row_without_the_text_is_named(rows: Rows, key: str, complaint: str):
    with pytest.raises(InputError, match=complaint):
        rows.text_of(ROW, key, "a:1")


def test_all_tests_must_hold():
    assert Rows(where=("score>=3", "title=A,B")).passes(ROW, "a:1")
    assert not Rows(where=("score>=3", "title=B")).passes(ROW, "a:1")
    with pytest.raises(InputError, match=r"'scor'.*--where. Did you mean 'score'"):
        Rows(where=("scor>=3",)).passes(ROW, "a:1")


def test_what_is_left_out_is_counted_and_listed(tmp_path: Path):
    losses = Losses(1, tmp_path / "lost.jsonl")
    losses.add("filtered", "a:1")
    losses.add("empty", "a:2")
    losses.undecodable(InputError("a:3: is not UTF-8"), "a:3")
    losses.finish()
    assert losses.counts == {"filtered": 1, "empty": 1, "undecodable": 1}
    assert [json.loads(line) for line in (tmp_path / "lost.jsonl").open()] == [
        {"place": "a:2", "reason": "empty"},
        {"place": "a:3", "reason": "undecodable", "error": "a:3: is not UTF-8"},
    ]
    with pytest.raises(InputError, match="a:4: is bad; more than --max_undecodable=1"):
        losses.undecodable(InputError("a:4: is bad"), "a:4")
    with pytest.raises(InputError, match="a:4: is bad; --max_undecodable=N leaves out"):
        Losses().undecodable(InputError("a:4: is bad"), "a:4")


def test_an_unfinished_list_is_deleted(tmp_path: Path):
    losses = Losses(listing=tmp_path / "lost.jsonl")
    losses.add("empty", "a:1")
    losses.discard()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [1, 100, 2**20 - 2, 2**20, 2**20 + 1])
def test_a_file_is_divided_wherever_its_blocks_end(size: int):
    pieces = [b"x" * size, b"", b"y" * 5, b"z" * (2**21), b"end"]
    assert list(divided(io.BytesIO(b"<|>".join(pieces)), b"<|>")) == pieces
