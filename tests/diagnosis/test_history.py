import json
import math

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.diagnosis.history import History, read_history
from jaxpretrain.storage.jsonl import JsonlWriter


def write(path, *records):
    writer = JsonlWriter(path)
    for step, scalars in records:
        writer.write(step, scalars)
    writer.close()
    return path


def test_lines_become_columns_with_the_steps_that_have_them(tmp_path):
    path = write(
        tmp_path / "metrics.jsonl",
        (0, {"eval/a/loss": 7.0}),
        (1, {"train/loss": 6.5, "train/tokens": 100}),
        (2, {"train/loss": math.nan, "train/tokens": 200}),
        (2, {"eval/a/loss": 6.0, "eval/a/bits_per_byte": None}),
    )
    history = read_history(path)
    assert history["train/loss"].steps.tolist() == [1, 2]
    np.testing.assert_array_equal(history["train/loss"].values, [6.5, np.nan])
    assert history.loss.steps.tolist() == [1]
    assert history["eval/a/loss"].steps.tolist() == [0, 2]
    assert np.isnan(history["eval/a/bits_per_byte"].values).all()
    assert len(history["never"]) == 0
    assert (history.step, history.unit) == (2, "tokens")
    assert np.all(np.diff(history["train/loss"].times) >= 0)


def test_numbers_of_layers_are_read_from_the_file_beside(tmp_path):
    path = write(tmp_path / "metrics.jsonl", (1, {"train/loss": 5.0}), (2, {"train/loss": 4.0}))
    rows = [(s, {"signals/x/blocks": [s, None], "signals/x/head": s}) for s in (2, 4, 6)]
    write(tmp_path / "signals.jsonl", *rows)
    history = read_history(path)
    layers = history["signals/x/blocks"]
    np.testing.assert_array_equal(layers.values, [[2, np.nan], [4, np.nan], [6, np.nan]])
    assert len(layers.finite) == 0 and layers.between(3, 9).steps.tolist() == [4, 6]
    assert history["signals/x/head"].values.tolist() == [2, 4, 6]
    assert history.until(4)["signals/x/blocks"].values.shape == (2, 2)


def test_names_that_appear_in_several_kinds_of_lines_keep_their_order(tmp_path):
    records = [(s, {"a": s} if s % 3 else {"a": s, "b": -s}) for s in range(1, 50)]
    history = read_history(write(tmp_path / "metrics.jsonl", *records))
    assert history["a"].values.tolist() == list(range(1, 50))
    assert history["b"].steps.tolist() == list(range(3, 50, 3))


@pytest.mark.parametrize("torn", ['{"step": 3, "ti', '{"step": 3, "time": 1.0, "train/loss": 4.0}'])
def test_a_line_without_its_newline_does_not_count(tmp_path, torn):
    path = write(tmp_path / "metrics.jsonl", (1, {"train/loss": 5.0}))
    with path.open("a") as file:
        file.write(torn)
    assert read_history(path).step == 1


def test_an_empty_file_is_an_empty_history(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    history = read_history(tmp_path / "metrics.jsonl")
    assert (history.step, history.span, history.names()) == (0, (0.0, 0.0), [])


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        '{"time": 1, "x": 2}',
        '{"step": 1, "x": 2}',
        '{"step": 1, "time": 1, "x": "y"}',
        '{"step": 1, "time": 1, "x": "1.5"}',
        '{"step": 1, "time": 1, "x": true}',
        '{"step": 1, "time": 1, "x": {"y": 1}}',
        '{"step": 1, "time": 1, "x": [[1], [2]]}',
        '{"step": 1, "time": 1, "x": []}',
        '{"step": 1, "time": 1, "x": [1, 2]}',
        '{"step": 1, "time": 1, "signals/x/blocks": 1}',
        '{"step": 1, "time": 1, "signals/x/blocks": []}',
        '{"step": 1, "time": 1, "signals/x/blocks/y": ["1"]}',
        '{"step": 1, "time": 1, "train/loss": [1]}',
        '{"step": 1.5, "time": 1}',
        '{"step": true, "time": 1}',
        '{"step": 1' + "0" * 30 + ', "time": 1}',
        '{"step": 1, "time": null}',
        '{"step": 1, "time": [1]}',
        '{"step": 1, "time": "1"}',
        "{",
        "",
    ],
)
def test_a_line_that_is_no_metrics_line_is_named(tmp_path, line):
    path = write(tmp_path / "metrics.jsonl", (1, {"train/loss": 5.0}))
    with path.open("a") as file:
        file.write(line + "\n" + json.dumps({"step": 2, "time": 2.0}) + "\n")
    with pytest.raises(InputError, match="line 2"):
        read_history(path)


@pytest.mark.parametrize(
    "value",
    [
        [1.0],
        [1.0, 2.0, 3.0],
        [],
        1.0,
        None,
        [1.0, "2"],
        [[1.0, 2.0]],
        {"0": 1.0, "1": 2.0},
    ],
)
@pytest.mark.parametrize("num_before", [1, 2])
def test_lists_of_layers_have_one_length(tmp_path, value, num_before):
    """In one kind of line as in another."""
    write(tmp_path / "metrics.jsonl", (1, {"train/loss": 5.0}))
    lines = [(step, {"signals/x/blocks": [1.0, None]}) for step in range(num_before)]
    lines += [(7, {"signals/x/blocks": value}), (8, {"signals/x/blocks": [1.0, 2.0], "other": 1})]
    write(tmp_path / "signals.jsonl", *lines)
    with pytest.raises(InputError) as error:
        read_history(tmp_path / "metrics.jsonl")
    where = f'signals.jsonl, line {num_before + 1}: "signals/x/blocks" is not a list of 2 numbers, '
    assert where in str(error.value)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(InputError, match="does not exist: no run has written metrics"):
        read_history(tmp_path / "metrics.jsonl")


def test_until_is_what_was_known_then(history):
    whole = history(range(1, 11), {"train/loss": range(1, 11)})
    part = whole.until(4)
    assert (part.step, part.loss.values.tolist()) == (4, [1, 2, 3, 4])
    assert whole.until(0).step == 0


def test_sessions_after_the_first_are_resumes(history):
    mark = history([0, 200, 300], {"run/num_devices": [8, 8, 8]})
    assert mark.resumed == [200, 300]
    assert History().resumed == []
