import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.display.wording import to_number
from jaxpretrain.storage import jsonl
from jaxpretrain.storage.jsonl import (
    Follower,
    JsonlWriter,
    add_part,
    drop_after,
    newest_line,
    read_blocks,
    read_lines,
    to_numbers,
)


def write_steps(path, steps):
    writer = JsonlWriter(path)
    for step in steps:
        writer.write(step, {"train/loss": step / 2})
    writer.close()


def test_a_line_is_step_and_time_and_then_the_names_in_order(tmp_path):
    writer = JsonlWriter(tmp_path / "metrics.jsonl")
    writer.write(7, {"train/loss": 2.5, "train/tokens": 4096, "eval/a/bits_per_byte": None})
    # No close: every line is in the file when write returns.
    [line] = (tmp_path / "metrics.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert list(record) == ["step", "time", "train/loss", "train/tokens", "eval/a/bits_per_byte"]
    assert (record["step"], record["train/loss"], record["train/tokens"]) == (7, 2.5, 4096)
    assert record["eval/a/bits_per_byte"] is None
    assert '"train/tokens": 4096,' in line


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_is_null(tmp_path, value):
    writer = JsonlWriter(tmp_path / "metrics.jsonl")
    writer.write(0, {"train/loss": value})
    assert read_lines(tmp_path / "metrics.jsonl")[0]["train/loss"] is None


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32, np.float64])
def test_floats_keep_their_value_in_their_own_type(dtype):
    for value in np.random.default_rng(0).normal(size=100).astype(dtype):
        assert np.asarray(to_number(value)).astype(dtype) == value


def test_numbers_are_short_and_of_python():
    assert repr(to_number(np.float32(3.412))) == "3.412"
    assert repr(to_number(jnp.float32(0.1))) == "0.1"
    assert repr(to_number(jnp.int32(3))) == "3"
    assert repr(to_number(2_000_000_000_000)) == "2000000000000"
    assert math.isnan(to_number(jnp.float32(jnp.nan)) or 0.0)
    assert to_number(None) is None
    assert (to_number(True), to_number(np.bool_(False))) == (1, 0)


@pytest.mark.parametrize(
    "value",
    [10**400, -(10**400), np.array(10**400), 1e300, np.float64(1.8e308), jnp.float32(3e38), 2**70],
)
def test_no_number_ends_the_file(tmp_path, value):
    """What is too large for a float is null, as what is infinite."""
    writer = JsonlWriter(tmp_path / "metrics.jsonl")
    writer.write(1, {"x": to_number(value), "layers": to_numbers(np.array([1.79769e308, 1e300]))})
    (record,) = read_lines(tmp_path / "metrics.jsonl")
    known = record["x"]
    assert known is None if abs(float(str(value))) == math.inf else known == to_number(value)
    assert record["layers"] == [None, 1e300]


def test_an_array_is_no_scalar():
    with pytest.raises(ValueError):
        to_number(np.zeros(2))


@pytest.mark.parametrize("torn", [b'{"step": 3, "ti', b"\x00" * 200_000, b'{"step": 3}'])
def test_a_torn_last_line_is_not_read_and_is_cut_off_by_the_next_write(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, [1, 2])
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert [record["step"] for record in read_lines(path)] == [1, 2]
    write_steps(path, [3])
    assert path.read_bytes().startswith(whole)
    assert [record["step"] for record in read_lines(path)] == [1, 2, 3]


def test_a_file_that_is_all_torn_line_starts_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1')
    write_steps(path, [5])
    assert [record["step"] for record in read_lines(path)] == [5]


def test_drop_after_keeps_the_bytes_up_to_the_step_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, [0, 10, 20])
    kept = path.read_bytes()
    write_steps(path, [30, 40])
    with open(path, "ab") as file:
        file.write(b"not json\n" + b'{"step": 1')
    drop_after(path, 20)
    assert path.read_bytes() == kept
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_drop_after_takes_a_missing_file_as_empty(tmp_path):
    drop_after(tmp_path / "metrics.jsonl", 20)
    assert not list(tmp_path.iterdir())


def test_reading_names_the_line_that_is_no_metrics_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n[]\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl, line 2"):
        read_lines(path)


def test_long_files_are_read_in_blocks_and_their_lines_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "_BLOCK", 100)
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(50))
    assert [record["step"] for record in read_lines(path)] == list(range(50))
    assert [first for first, _ in read_blocks(path)][:2] == [1, 3]
    with open(path, "ab") as file:
        file.write(b'{"step": 50}, {"step": 51}\n')
    with pytest.raises(InputError, match="line 51"):
        read_lines(path)


def test_a_mark_of_the_byte_order_is_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"step": 1}\n{"step": 2}\n')
    assert [record["step"] for record in read_lines(path)] == [1, 2]


def test_a_missing_file_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "metrics.jsonl") == []


def test_a_line_that_grows_while_a_run_is_read_is_left_for_later(tmp_path):
    """A run that goes on writes the rest of its torn last line while it is read."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "time": 1}\n{"step": 2, "ti')
    blocks = read_blocks(path)
    assert next(blocks) == (1, [{"step": 1, "time": 1}])
    with path.open("ab") as file:
        file.write(b'me": 2}\n')
    assert list(blocks) == []
    assert [record["step"] for record in read_lines(path)] == [1, 2]


def put_parts(path, *parts):
    for lines in parts:
        jsonl.add_part(path, b"".join(json.dumps(line).encode() + b"\n" for line in lines))


def test_parts_are_read_in_order_wherever_they_lie(bucket, tmp_path):
    for path in (bucket / "run" / "metrics.jsonl", tmp_path / "metrics.jsonl"):
        assert not jsonl.has_lines(path)
        (tmp_path / "metrics").mkdir(exist_ok=True)
        put_parts(path, [{"step": 0, "a": 1}, {"step": 1, "a": 2}], [{"step": 2, "a": 3}])
        assert jsonl.has_lines(path)
        assert [line["a"] for line in read_lines(path)] == [1, 2, 3]
        assert [part.name for part in jsonl.parts_of(path)] == ["00000000.jsonl", "00000001.jsonl"]


def test_a_later_part_wins(bucket):
    path = bucket / "run" / "metrics.jsonl"
    put_parts(
        path,
        [{"step": 1, "x": 1}, {"step": 2, "x": 2}, {"step": 3, "x": 3}],
        [{"step": 2, "devices": 8}, {"step": 3, "x": 33}],  # went on after step 2
        [{"step": 3, "x": 333}],
    )
    found = [(line["step"], line.get("x")) for line in read_lines(path)]
    assert found == [(1, 1), (2, 2), (2, None), (3, 333)]


def test_resuming_drops_later_lines_of_parts(bucket):
    path = bucket / "run" / "metrics.jsonl"
    put_parts(path, [{"step": 1}, {"step": 2}], [{"step": 3}, {"step": 4}], [{"step": 5}])
    drop_after(path, 3)
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3]
    assert len(jsonl.parts_of(path)) == 2
    put_parts(path, [{"step": 4}])
    assert jsonl.parts_of(path)[-1].name == "00000002.jsonl"
    jsonl.drop_all(path)
    assert not jsonl.has_lines(path)


def test_the_newest_line_with_a_name_is_found_from_the_end(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert newest_line(path, "a") is None
    path.write_text(
        '{"step": 1, "a": 1}\n{"step": 2, "a": 2}\n{"step": 3, "b": 1}\n{"step": 4, "a"'
    )
    assert newest_line(path, "a") == {"step": 2, "a": 2}
    (tmp_path / "metrics").mkdir()
    add_part(path, b'{"step": 5, "a": 5}\n')
    add_part(path, b'{"step": 6, "b": 5}\n')
    assert newest_line(path, "a") == {"step": 5, "a": 5}
    assert newest_line(path, "c") is None


def test_a_follower_has_every_whole_line_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    steps = lambda: [r["step"] for block in follower.new_blocks() for r in block]  # noqa: E731
    assert steps() == []
    write_steps(path, [1, 2])
    with path.open("a") as file:
        file.write('{"step": 3, "time": 1.0')
        file.flush()
        assert steps() == [1, 2]
        assert steps() == []
        file.write(', "train/loss": 1.0}\n')
    assert steps() == [3]
    with path.open("a") as file:
        file.write("[]\n")
    with pytest.raises(InputError, match="line 4: not a JSON object"):
        steps()


def test_a_follower_has_every_part_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    (tmp_path / "metrics").mkdir()
    for part in ([1, 2], [3]):
        add_part(path, b"".join(b'{"step": %d, "time": 1.0}\n' % step for step in part))
        assert [r["step"] for block in follower.new_blocks() for r in block] == part
