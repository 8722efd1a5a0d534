"""Sweeps that are made up: documents of `sweep.json`, and folders of runs with known results."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from jaxpretrain.config.serialize import Document
from jaxpretrain.storage.jsonl import JsonlWriter

Tuned = tuple[tuple[str, str], ...]


@pytest.fixture
def make_arm(tmp_path: Path) -> Callable[..., Document]:
    """Returns an arm of the document and writes the runs that are done, one a seed."""

    def make(
        name: str,
        losses: Sequence[float | None],
        *,
        tuned: Tuned = (),
        metrics: Sequence[Mapping[str, float]] = (),
        right: Sequence[str] = (),
    ) -> Document:
        """`losses` are held-out ones, None of a run that failed; `right` is a 0 or 1 an item."""
        point = ",".join(f"{path}={value}" for path, value in tuned)
        runs = []
        for seed, loss in enumerate(losses):
            folder = "/".join(filter(None, (name, point, f"seed{seed}")))
            state = "failed" if loss is None else "done"
            runs.append({"folder": folder, "seed": seed, "tuned": tuned, "state": state})
            if loss is None:
                continue
            writer = JsonlWriter(tmp_path / folder / "metrics.jsonl")
            for step in range(1, 21):
                writer.write(step, {"train/loss": loss + 0.5 + max(0, 17 - step)})
            writer.write(20, {"eval/a/loss": loss, **(metrics[seed] if metrics else {})})
            if right:
                rows = [
                    {
                        "step": 20,
                        "task": "t",
                        "item": str(i),
                        "answer": 1,
                        "chosen": {"acc": int(letter)},
                    }
                    for i, letter in enumerate(right[seed])
                ]
                text = "\n".join(map(json.dumps, rows)) + "\n"
                (tmp_path / folder / "items.jsonl").write_text(text)
        return {"name": name, "overrides": (("model.x", name),), "runs": runs}

    return make


@pytest.fixture
def make_document() -> Callable[..., Document]:
    """Returns the document of a sweep before there are metrics; the first arm is the control."""

    def make(*arms: Document, **changes: Any) -> Document:
        seeds = sorted({run["seed"] for run in arms[0]["runs"]})
        control = arms[0]["name"]
        reason = {"control": control, "control_reason": "the config as it stands"}
        return {"seeds": seeds, "arms": list(arms), **reason, **changes}

    return make
