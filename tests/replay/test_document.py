import json
from pathlib import Path

import numpy as np
import pytest

from jaxpretrain.replay.document import closer, describe_replay, write_replay
from jaxpretrain.replay.epoch import look_around
from jaxpretrain.replay.microscope import Microscope
from jaxpretrain.replay.proof import judge
from jaxpretrain.replay.stretch import open_stretch
from jaxpretrain.replay.told import tell


def test_the_document_has_what_was_seen(plain: Path, tmp_path: Path):
    stretch = open_stretch(plain, "9-10")
    steps = [*stretch.run(stretch.restore(), Microscope(stretch, 3))]
    views = [step.seen for step in steps if step.seen]
    around = look_around(stretch, views)
    document = describe_replay(stretch, steps, judge(stretch, steps), [], around)
    assert (document["steps"], document["from"]) == ([9, 10], 8)
    assert [one["state"] for one in document["proof"]["steps"]] == ["identical"] * 2
    assert sum(one["examples"] for one in document["files"]) == 16
    losses = [one["loss"] for one in document["files"]]
    assert losses == sorted(losses, reverse=True)
    metrics = document["metrics"][0]
    assert metrics["clipped_to"] == pytest.approx(min(1, 1 / (metrics["grad_norm"] + 1e-6)))
    assert len(document["signals"]["9"]["attention_logit/blocks"]) == 2

    shown, pictures = closer(stretch, views, around, 4)
    assert len(shown) == 4 and not pictures
    for one in shown:
        assert len(one["texts"]) == len(one["losses"]) == len(one["tokens"]) == 64
        assert one["texts"][3] == f"[{one['tokens'][3]}]"  # raw files have no tokenizer
        mean = sum(one["losses"]) / one["weight"]
        assert mean == pytest.approx(one["loss"], rel=1e-3)
        counts = [rare["count"] for rare in one["rare"]]
        assert counts == sorted(counts) and counts[0] > 0
    highest = max((one for view in views for one in view.examples), key=lambda one: one.loss)
    assert (highest.step, highest.row) in [(one["step"], one["row"]) for one in shown]

    lines = [*tell(document)]
    assert lines[0].startswith("the same steps? identical: 2 of 2")
    assert "nothing stands out" in lines and "examples with the highest losses:" in lines
    write_replay(tmp_path / "kept", document, {"a.png": np.zeros((2, 2, 3), np.uint8)})
    assert json.loads((tmp_path / "kept" / "replay.json").read_text())["from"] == 8
    assert (tmp_path / "kept" / "a.png").read_bytes()[1:4] == b"PNG"
