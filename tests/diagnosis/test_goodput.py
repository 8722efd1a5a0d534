"""Where the time of a run went, worked out by hand."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from jaxpretrain.diagnosis.goodput import CAUSES, Session, goodput, read_sessions


def _parts(train: float, data_wait: float = 0, compile_: float = 0, **more: float):
    return {"train": train, "data_wait": data_wait, "compile": compile_, **more}


# 10 s of meeting and start, 5 of compilation, 60 of steps, 20 of waiting for data; stalled for 30.
FIRST = Session(1000.0, 4.0, 0.0, {}, 1100.0, _parts(60, 20, 5, eval=3, save=2), stalled=30.0)
# An hour later, from the save that was made after 45 s of steps and 15 of waiting.
SECOND = Session(4730.0, 4.0, 2.0, _parts(45, 15, 5, eval=3, save=2), 4800.0, _parts(90, 20, 10))


def test_all_causes_together_are_the_time_that_has_passed():
    found = goodput([FIRST, SECOND])
    assert found is not None and found.wall == pytest.approx(4800 - 1000)
    assert tuple(found.seconds) == CAUSES
    assert found.seconds["stall"] == 30
    assert found.seconds["idle"] == 4730 - 1130
    assert found.seconds["lost steps"] == 20
    assert found.seconds["steps"] == pytest.approx(45 + 45)
    assert found.seconds["rendezvous"] == 8 and found.seconds["restore"] == 2
    assert found.share == pytest.approx(90 / 3800)


def test_steps_that_several_starts_had_made_are_lost_where_one_goes_back_behind_them_all():
    """100 s of steps in two starts, from 60 s on in the second; the third goes on after 25 s."""
    first = Session(0.0, clock={}, ended=60.0, seconds=_parts(50, 10))
    second = Session(70.0, clock=_parts(50, 10), ended=110.0, seconds=_parts(82, 18))
    third = Session(120.0, clock=_parts(20, 5), ended=150.0, seconds=_parts(50, 5))
    found = goodput([first, second, third])
    assert found is not None and found.wall == pytest.approx(150)
    assert found.seconds["lost steps"] == pytest.approx(35 + 40)
    # Of the 25 s that are kept, the share of steps is that of all 60.
    assert found.seconds["steps"] == pytest.approx(50 * 25 / 60 + 30)
    assert found.seconds["idle"] == pytest.approx(20)


def test_the_line_names_what_took_most_first():
    found = goodput([FIRST])
    assert found is not None
    assert found.describe() == (
        "46.2% of 2m10s since the first start went into steps that counted; stall 23.1%, "
        "data wait 15.4%, start 4.6%, compile 3.8%, rendezvous 3.1%, evaluation 2.3%, "
        "save stall 1.5%"
    )
    assert goodput([]) is None


def test_what_was_written_is_read_and_damage_is_no_session(tmp_path: Path):
    path = tmp_path / "sessions.json"
    assert read_sessions(tmp_path) == []
    path.write_text(json.dumps({"sessions": [asdict(FIRST), asdict(SECOND)]}))
    assert read_sessions(tmp_path) == [FIRST, SECOND]
    path.write_text('{"sessions": [{"started": "soon"}]}')
    assert read_sessions(tmp_path) == []
    path.write_text('{"sess')
    assert read_sessions(tmp_path) == []
