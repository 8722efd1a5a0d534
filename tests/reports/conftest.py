"""Folders of runs to report, from the recorded histories of the diagnosis."""

import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxpretrain.diagnosis.intent import TrainingPlan
from jaxpretrain.reports.page import page
from jaxpretrain.reports.runs import RunHistory, read_runs
from tests.diagnosis.conftest import history

__all__ = ["history"]

PLAN = TrainingPlan(
    1000, [("warmup", 0), ("decay", 200)], lambda s: 0 * np.asarray(s) + 1e-3, clip_norm=1.0
)
STEPS = np.arange(1, 1001)
HISTORIES = Path(__file__).parent.parent / "golden" / "histories"


def make_run(folder: Path, scenario: str, *, torn: bool = False) -> Path:
    """Lays out a recorded history as the folder of a run."""
    document = json.loads(gzip.decompress((HISTORIES / f"{scenario}.json.gz").read_bytes()))
    lines: dict[tuple[float, int], dict[str, object]] = {}
    for name, columns in document["series"].items():
        for step, time, value in zip(*columns, strict=True):
            lines.setdefault((time, step), {"step": step, "time": 1.7e9 + time})[name] = value
    folder.mkdir(parents=True)
    text = "".join(json.dumps(lines[key]) + "\n" for key in sorted(lines))
    (folder / "metrics.jsonl").write_text(text + ('{"step": 99' if torn else ""))
    (folder / "experiment.json").write_text(json.dumps({"config": document["config"]}))
    texts = {"step": 100, "time": 1.7e9, "samples/0": "</script><script>alert(2)</script>|text"}
    (folder / "samples.jsonl").write_text(json.dumps(texts) + "\n")
    return folder


def run_with(history, name="run", steps=STEPS, config=None, **values):
    """A run of 1,000 steps with metrics whose names have __ for /."""
    named = {n.replace("__", "/"): v for n, v in values.items()}
    document = {"config": config} if config else {}
    return RunHistory(name, history(steps, named), PLAN, document, {}, [], now=0.0)


def figures(html: str) -> dict:
    """The data of the charts."""
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', html, re.S)
    assert found is not None
    return json.loads(found[1])


def page_of(workdirs: Sequence[Path]) -> str:
    """The HTML of a report about the runs of some folders."""
    return page(read_runs(workdirs))
