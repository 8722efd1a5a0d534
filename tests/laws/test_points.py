import json
import re
from dataclasses import replace

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.laws.points import Points, matching, parse_columns, points_of, read_table
from tests.laws.published import DATA, LAW, made, table

ROWS = [
    {"size": "1e6", "tokens": "2e7", "loss": "3.5", "kind": "1x"},
    {"size": "2e6", "tokens": "4e7", "loss": "3.2", "kind": "2x"},
    {"size": "2e6", "tokens": "8e7", "loss": "3.1", "kind": "2x-again"},
]
COLUMNS = {"n": "size", "d": "tokens", "loss": "loss"}


def test_both_kinds_of_tables_have_the_same_points(tmp_path):
    lines, comma = tmp_path / "a.jsonl", tmp_path / "a.csv"
    lines.write_text("\n".join(json.dumps(row) for row in ROWS))
    comma.write_text(
        "\n".join([",".join(ROWS[0]), *(",".join(row.values()) for row in ROWS)]) + "\n"
    )
    one, two = (table(path, "n=size,d=tokens,loss=loss") for path in (lines, comma))
    assert one.hash == two.hash
    assert one.names == ("row 1", "row 2", "row 3")
    assert one.without_highest(1).losses.tolist() == [3.2, 3.1]
    assert one.without_highest(1).hash != one.hash


def test_flops_give_the_tokens():
    rows = [{"size": 1e6, "c": 6e13, "loss": 3.0}]
    found = points_of(rows, parse_columns("n=size,c=c,loss=loss", rows))
    assert (found.tokens[0], found.flops[0]) == (1e7, 6e13)


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("tokens>=4e7", [1, 2]),
        ("tokens<4e7", [0]),
        ("kind=1x,2x", [0, 1]),
        ("kind!=1x", [1, 2]),
        ("size=2000000", [1, 2]),
    ],
)
def test_conditions_take_rows(condition, kept):
    assert np.flatnonzero(matching(ROWS, [condition])).tolist() == kept


def test_rows_without_a_size_are_left_out_and_said():
    found = table(DATA / "porian_optima.csv", "n=n_opt,c=flops,loss=loss")
    assert found.warnings == ("2 of 118 rows have no size or length and are left out",)
    assert len(found) == 116


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: parse_columns("n=sise,d=tokens,loss=loss", ROWS), "Did you mean 'size'"),
        (lambda: parse_columns("n=size,loss=loss", ROWS), "d= or c="),
        (lambda: parse_columns("n=size,d=tokens,c=tokens,loss=loss", ROWS), "not both"),
        (lambda: parse_columns("n=size,n=tokens,loss=loss", ROWS), "names n twice"),
        (lambda: parse_columns("n=size,d=tokens,los=loss", ROWS), "Did you mean 'loss'"),
        (lambda: matching(ROWS, ["token>1"]), "Did you mean 'tokens'"),
        (lambda: matching(ROWS, ["tokens>many"]), "'many' is no number"),
        (lambda: matching(ROWS, ["tokens"]), "write COLUMN>=NUMBER"),
        (lambda: parse_columns("n=size,d=size,loss=loss", ROWS), "a column of its own"),
        (lambda: parse_columns("n=size,d=tokens,loss=loss,", ROWS), "'' names no quantity"),
        (lambda: matching(ROWS, ["kind=1x,2X"]), "no row has the kind 2X. Did you mean '2x'"),
        (lambda: matching(ROWS, ["kind!=3"]), "no row has the kind 3. There are 1x, 2x, 2x-a"),
        (lambda: matching(ROWS, ["tokens=>4e7"]), "=> is no sign"),
        (lambda: matching(ROWS, ["tokens==4e7"]), "== is no sign"),
        (lambda: matching(ROWS, ["size<2e6", "kind=2x"]), "no row passes all tests"),
        (lambda: points_of([ROWS[0] | {"loss": "nan"}], COLUMNS), "row 1: loss is missing"),
        (lambda: points_of([ROWS[0] | {"loss": ""}], COLUMNS), "row 1: loss is missing"),
        (lambda: points_of([ROWS[0] | {"loss": "inf"}], COLUMNS), "row 1: loss is inf"),
        (lambda: points_of([ROWS[0] | {"tokens": "-1"}], COLUMNS), "row 1: tokens is -1"),
        (lambda: points_of([ROWS[0] | {"tokens": "inf"}], COLUMNS), "row 1: tokens is inf"),
        (lambda: points_of([ROWS[0] | {"size": "0"}], COLUMNS), "row 1: parameters is 0"),
        (lambda: points_of([*ROWS, ROWS[0] | {"size": "1B"}], COLUMNS), 'row 4: size is "1B", no'),
        (lambda: points_of([ROWS[0] | {"loss": True}], COLUMNS), "row 1: loss is true, no number"),
        (lambda: points_of([ROWS[0] | {"size": [1]}], COLUMNS), "row 1: size is [1], no number"),
        (lambda: points_of([ROWS[0] | {"size": ""}], COLUMNS), "no row has a size and a length"),
        (lambda: points_of(ROWS, COLUMNS).without_highest(3), "--drop_highest=3"),
        (lambda: points_of(ROWS, COLUMNS).require_law(), "3 points"),
        (lambda: made()[made().parameters < 2e7].require_law(), "4 points"),
    ],
)
def test_bad_input_is_one_line(call, words):
    with pytest.raises(InputError, match=re.escape(words)):
        call()


@pytest.mark.parametrize("what", ["parameters", "tokens"])
@pytest.mark.parametrize(("number", "words"), [(1, "all points have 1e"), (2, "only two values")])
def test_one_or_two_sizes_or_lengths_are_no_law(what, number, words):
    points = made()
    values = getattr(points, what)
    many = points[np.tile(np.flatnonzero(np.isin(values, np.unique(values)[:number])), 2)]
    with pytest.raises(InputError, match=rf"{words}.*\b{what}\b.*: a law takes three"):
        many.require_law()


def test_sizes_and_lengths_that_grow_together_are_no_law():
    sizes = np.geomspace(1e7, 1e9, 8)
    line = Points(sizes, 20 * sizes, LAW.loss(sizes, 20 * sizes), ("",) * 8, "loss")
    with pytest.raises(InputError, match=r"tokens = 20 parameters\^1: .* cannot be told apart"):
        line.require_law()
    tokens = line.tokens * np.where(np.arange(8) < 2, 2, 1)
    replace(line, tokens=tokens).require_law()


def test_a_few_runs_with_several_seeds_are_no_law():
    few = made()[np.tile([0, 1, 6, 11], 3)]
    with pytest.raises(InputError, match="are 4 runs, repeated"):
        few.require_law()


def test_headings_may_have_blanks_and_cells_line_ends(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('size, tokens, loss,note\r\n1e6, 2e7, 3.5,"two\nlines"\r\n')
    assert table(path, "n=size,d=tokens,loss=loss").tokens.tolist() == [2e7]
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"size": 1, "tokens": 2, "loss": 3, "note": "a\u2028b"}\n', "utf-8")
    assert len(read_table(lines)) == 1


def test_rows_may_lack_cells_that_are_not_needed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, [{"more": 1, **ROWS[0]}, ROWS[1], {"loss": 3.0}])))
    found = table(path, "n=size,d=tokens,loss=loss")
    assert found.warnings == ("1 of 3 rows have no size or length and are left out",)
    assert table(path, "n=size,d=tokens,loss=loss", "more=1").losses.tolist() == [3.5]
    path.write_text("\n".join(map(json.dumps, [{"size": 1, "tokens": 2}, ROWS[1]])))
    with pytest.raises(InputError, match="row 1: loss is missing"):
        table(path, "n=size,d=tokens,loss=loss")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", "n\n1\n", "ends with .csv or .jsonl"),
        ("a.csv", "", "holds no rows"),
        ("a.csv", "n,loss\n1,2\n1,000,2\n", "row 2 has more cells than the heading"),
        ("a.csv", "n,loss,loss\n1,2,3\n", "two columns are called loss"),
        ("a.csv", "n\n" + 200_000 * "1", "is no table .field larger"),
        ("a.jsonl", '{"n": 1}\n\n{', "line 3 is not JSON"),
        ("a.jsonl", "3\n", "holds no rows"),
    ],
)
def test_what_is_no_table_is_said(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        read_table(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read"):
        read_table(tmp_path / "none.csv")
