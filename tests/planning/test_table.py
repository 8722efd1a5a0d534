"""Plans as a document for programs and as text for people."""

import json

import pytest

from jaxpretrain.planning.table import make_document, make_table
from tests.planning.conftest import changed, plan


def test_the_document_has_what_programs_rely_on(decoder, one):
    found = plan(changed(decoder, train__microbatch_size=4), one)
    answer = json.loads(json.dumps(make_document(found, price=2.0)))
    assert answer["fits"] is answer["fits_as_configured"] is True
    assert answer["source"] == "compiled"
    assert answer["memory_bytes_per_device"] == sum(answer["memory_parts"].values())
    assert answer["max_microbatch_size"] == found.best.size
    assert answer["overrides"] == found.overrides(found.best)
    assert answer["tokens_per_second"] * answer["step_seconds"] == pytest.approx(16 * 64)
    assert answer["steps"] == 10
    assert answer["device_hours"] == pytest.approx(10 * answer["step_seconds"] / 3600)
    assert answer["days"] == pytest.approx(answer["device_hours"] / 24)
    assert answer["cost"] == pytest.approx(2 * answer["device_hours"])
    assert answer["bound_by"] in ("compute", "memory", "network")
    assert answer["plan_seconds"] > 0
    assert answer["frontier"][0]["overrides"] == answer["overrides"]


def test_the_table_names_parts_flags_and_days(decoder, one):
    text = make_table(plan(changed(decoder, train__microbatch_size=4), one), price=2.0)
    for word in ("parameters", "activations", "MFU", "device-hours", "cost", "recommended"):
        assert word in text
