"""Plans as a document for programs and as text for people."""

import json
from dataclasses import replace

import pytest

from jaxpretrain.devices.chips import GIB
from jaxpretrain.planning.compiled import Buffer
from jaxpretrain.planning.table import make_document, make_table
from tests.planning.conftest import changed, plan

COMPILED = "memory is compiled"


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


def test_the_table_says_what_fits_and_what_is_estimated(decoder, one):
    fixed = changed(decoder, train__microbatch_size=4)
    found = plan(fixed, one)
    lines = make_table(found, price=None).splitlines()
    total = f"{found.configured.total / GIB:.2f} GiB per device"
    assert lines[0] == f"1 x cpu, 1 host: 0.95 GiB of 1.00 a device for the step; {COMPILED}"
    assert lines[1] == f"as configured: fits, {total}"
    assert "cost" not in lines[-3]
    assert not any("largest buffers" in line or "nothing" in line for line in lines)
    tight = plan(fixed, one, limit=found.configured.total - 1, searched=())
    lines = make_table(tight, price=None).splitlines()
    assert lines[1:3] == [f"as configured: DOES NOT FIT, {total}", "nothing that was searched fits"]
    unbound = replace(found.configured, compiled=None)
    estimated = make_table(replace(found, configured=unbound), price=None).splitlines()
    assert estimated[1] == f"as configured: fits, {total} (estimated)"
    assert "as configured" not in make_table(replace(found, configured=None), price=None)


def test_the_largest_buffers_are_listed_with_their_shapes(decoder, one):
    found = plan(decoder, one)
    sizes = {"f32[4]": 3 * GIB, "x" * 70: 2 * GIB, "y" * 71: GIB}
    buffers = tuple(Buffer(size, shapes) for shapes, size in sizes.items())
    compiled = replace(found.best.compiled, buffers=buffers)
    found = replace(found, trials=[replace(found.best, compiled=compiled)])
    lines = make_table(found, price=None).splitlines()
    listed = make_document(found, price=None)["largest_buffers"]
    assert listed == [{"bytes": size, "shapes": shapes} for shapes, size in sizes.items()]
    start = lines.index("  largest buffers besides the state")
    assert [line.split() for line in lines[start + 1 : start + 4]] == [
        ["3.00", "f32[4]"],
        ["2.00", "x" * 70],
        ["1.00", "y" * 67 + "..."],
    ]
