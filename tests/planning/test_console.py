"""The plan command: its table, its document, and the check of configs."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.devices.chips import GIB
from jaxpretrain.planning import console
from jaxpretrain.planning.compiled import Buffer
from jaxpretrain.planning.console import make_document, make_table
from tests.planning.conftest import TINY, changed, plan

FLAGS = {"memory_gib": None, "max_seconds": 150.0, "num_workers": None, "price": None}
FLAGS |= {"audit": True}


def write(path: Path, hardware: str, d_ff: int = 64) -> Path:
    path.write_text(TINY.format(hardware=hardware, d_ff=d_ff))
    return path


def test_configs_are_checked_on_the_hardware_that_they_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """As continuous integration would: the code says whether all fit."""
    small = write(tmp_path / "small.py", "h100-80gb:8")
    huge = write(tmp_path / "huge.py", "a100-40gb:1", d_ff=16_000_000)
    silent = write(tmp_path / "silent.py", "as it comes")

    assert console.check_configs([small, silent]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{small} on h100-80gb:8: fits, ")
    assert lines[1] == f"{silent}: states no machine"
    assert console.check_configs([huge]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{huge} on a100-40gb:1: DOES NOT FIT, ")


@pytest.mark.parametrize(
    ("hardware", "target"),
    [
        ("h100:8", "h100-80gb:8"),
        ("tpu-v5p:4x4x4 and more", "tpu-v5p:4x4x4"),
        ("abacus:8", None),
        ("two cores", None),
    ],
)
def test_a_docstring_states_a_machine(tmp_path: Path, hardware: str, target: str | None):
    assert console._stated_target(write(tmp_path / "tiny.py", hardware)) == target


def test_a_file_that_is_no_python_is_one_line(tmp_path: Path):
    (tmp_path / "broken.py").write_text("def")
    with pytest.raises(InputError, match=r"--check .*broken\.py: "):
        console.check_configs([tmp_path / "broken.py"])


def test_progress_goes_to_standard_error_and_the_answer_comes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = str(write(tmp_path / "tiny.py", "local"))
    dtype = [("model.dtype", "float32"), ("train.microbatch_size", "2")]
    flags = Namespace(config=config, target="local", search="none", **FLAGS)
    table, document = console.plan_config(flags, dtype)
    assert document["fits"] is document["fits_as_configured"] is True
    assert table.endswith("recommended: the config as it stands")
    assert "\naudit of that step, per device\n  FLOPs in products " in table
    keys = {"product_flops", "expected_flops", "remat_instructions", "float32_product_flops"}
    keys |= {"traffic_bytes", "cross_host_bytes", "cross_host_minimum"}
    audit = json.loads(json.dumps(document))["audit"]
    assert keys < audit.keys()
    of_each = {"kind", "bytes", "dtype", "crosses_hosts", "overlapped"}
    assert audit["collectives"] and all(c.keys() == of_each for c in audit["collectives"])
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith("compiled microbatch 2, remat full, mesh 1 x 8 x 1: ")
    assert "\nas configured it fits: " in error
    # The limit of the flag is the limit of the plan, and nothing is searched.
    flags.memory_gib = 1e-5
    table, document = console.plan_config(flags, dtype)
    assert document["fits"] is False
    assert document["memory_limit_bytes"] == int(1e-5 * 2**30)
    assert "as configured it does not fit" in capsys.readouterr().err


COMPILED = "memory is compiled"


def test_the_document_has_what_programs_rely_on(decoder, one):
    found = plan(changed(decoder, train__microbatch_size=4), one)
    answer = json.loads(json.dumps(make_document(found, price=2.0)))
    assert answer["fits"] is answer["fits_as_configured"] is True
    assert answer["source"] == "compiled"
    assert answer["memory_bytes_per_device"] == sum(answer["memory_parts"].values())
    assert answer["max_microbatch_size"] == found.max_size
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
    assert "audit" not in text


def test_the_table_says_what_fits_and_what_is_estimated(decoder, one):
    fixed = changed(decoder, train__microbatch_size=4)
    found = plan(fixed, one)
    lines = make_table(found, price=None).splitlines()
    total = f"{found.configured.total / GIB:.2f} GiB per device"
    assert lines[0] == f"1 x cpu, 1 host: 0.95 GiB of 1.00 per device for the step; {COMPILED}"
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
