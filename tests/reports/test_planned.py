"""What was planned, beside what came."""

import json
from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.reports.planned import planned
from jaxpretrain.reports.runs import read_run

GIB = 2**30


def run_with(folder: Path, **documents: object):
    lines = [
        {
            "step": step,
            "time": 1000.0 + step,
            "train/loss": 3.0,
            "train/tokens": 100 * step,
            "perf/tokens_per_second": 50.0,
            "perf/device_memory_gib": 0.75,
            "perf/host_memory_gib": 2.5,
        }
        for step in range(1, 9)
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    return read_run(folder)


def test_a_run_without_a_plan_has_nothing_to_compare(tmp_path: Path):
    assert planned(run_with(tmp_path)) == ""


def test_the_parts_of_memory_add_up_and_stand_beside_the_peaks(tmp_path: Path):
    memory = {"parameters": GIB // 4, "activations": GIB // 2}
    text = planned(run_with(tmp_path, experiment={"memory": memory}))
    assert "<td>in all</td><td>0.75</td>" in text
    assert "<td>most that was held on the device</td><td>0.75</td>" in text
    assert "<td>most that was held on the host</td><td>2.50</td>" in text
    assert "planned" not in text


def test_a_plan_is_compared_with_what_came(tmp_path: Path):
    plan = {"tokens_per_second": 60.0, "memory_bytes_per_device": GIB, "device_hours": 2.0}
    text = planned(run_with(tmp_path, plan=plan))
    assert "<td>tokens a second</td><td>60</td><td>50</td>" in text
    assert "<td>GiB of a device</td><td>1.00</td><td>0.75</td>" in text
    assert "device-hours of the whole run" in text


@pytest.mark.parametrize(
    ("name", "document", "key"),
    [
        ("plan", {"tokens_per_second": "60"}, "tokens_per_second"),
        ("plan", {"device_hours": [2.0]}, "device_hours"),
        ("plan", {"memory_bytes_per_device": {"a": 1}}, "memory_bytes_per_device"),
        ("plan", [], "is not a JSON object"),
        ("experiment", {"memory": {"parameters": [1]}}, "memory.parameters"),
        ("experiment", {"memory": 3}, "memory"),
        ("experiment", {"config": [1]}, "config"),
        ("experiment", "x", "is not a JSON object"),
    ],
)
def test_a_document_of_other_types_is_named_with_its_key(
    tmp_path: Path, name: str, document: object, key: str
):
    with pytest.raises(InputError, match=rf"{name}\.json: {key}"):
        run_with(tmp_path, **{name: document})
