import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.diagnosis.findings import Finding
from jaxpretrain.reports.replays import about, read_replays, section
from tests.reports.conftest import figures, make_run, page_of

STEP = {"step": 200, "loss": 2.0, "grad_norm": 1.5, "clipped_to": 0.5, "learning_rate": 1e-3}
PART = {"words": "a.npy, <b>", "loss": 3.0, "gradient": 0.5, "layer": "embed", "repeated": 0.25}
KEPT: dict[str, Any] = {
    "steps": [199, 201],
    "proof": {"words": "identical: ...", "steps": [{"step": 200, "state": "identical"}]},
    "suspects": [{"kind": "shard", "name": "a.npy", "why": "its loss is high"}],
    "metrics": [STEP | {"step": 198}, STEP],
    "files": [{"name": "a.npy", "examples": 3, "weight": 7.0, "loss": 2.5}],
    "documents": [PART | {"again": [7, 1009]}],
    "closer": [
        PART | {
            "texts": ["The", "</pre>"], "losses": [0.0, 9.0], "commonest": ["The", 0.5],
            "rare": [{"text": "Tod", "count": 1}],
        },
        PART | {"losses": [1.0], "picture": "7-1.png"},
    ],
    "arms": [
        {"name": "--without=200", "words": "it stays away", "losses": [[199, 2.0], [200, None]]}
    ],
}  # fmt: skip


def keep(run: Path, **changes: Any) -> Path:
    folder = run / "replays" / "199-201"
    folder.mkdir(parents=True)
    (folder / "replay.json").write_text(json.dumps(KEPT | changes))
    (folder / "7-1.png").write_bytes(b"png")
    return folder


def test_a_page_shows_kept_replays_and_leads_to_them_from_the_spike(tmp_path: Path):
    run = make_run(tmp_path / "run", "spike")
    html = page_of([run])
    assert ">Replays</h2>" not in html
    command = f"<code>jaxpretrain replay --workdir={run} --steps=195-207</code>"
    assert command in html
    keep(run)
    html = page_of([run])
    assert f'{command} <a href="#replay-199-201">replay of the steps 199 to 201</a>' in html
    assert '<details id="replay-199-201" open>' in html
    for text in ("identical: ...", "<b>shard</b>: a.npy. its loss is high", "7, 1,009", "Tod (1)"):
        assert text in html
    assert 'style="background:rgba(200,50,40,0.70)" title="9.0">&lt;/pre&gt;</span>' in html
    assert "a.npy, &lt;b&gt;" in html and "data:image/png;base64,cG5n" in html
    assert [trace["name"] for trace in figures(html)["replay_0"]["traces"]] == [
        "the run", "--without=200",
    ]  # fmt: skip


def test_long_examples_are_cut(tmp_path: Path):
    long = PART | {"texts": ["a"] * 2000, "losses": [1.0] * 2000}
    keep(tmp_path, closer=[long], arms=[])
    text, charts = section(read_replays(tmp_path))
    assert text.count("<span") == 1500 and "The first 1,500 of 2,000." in text and not charts


def test_a_finding_about_no_steps_has_no_command(tmp_path: Path):
    spike = Finding("spike", 3, 4, "", "", {})
    assert "--steps=1-8<" in about(spike, tmp_path, {}, 8)
    assert "--steps=1-9<" in about(spike, tmp_path, {}, 100)
    assert "--steps=1-8<" in about(replace(spike, name="divergence", last=90), tmp_path, {}, 100)
    assert about(replace(spike, name="plateau"), tmp_path, {}, 8) == ""


def test_a_damaged_replay_is_one_line(tmp_path: Path):
    keep(tmp_path, steps="199-201")
    with pytest.raises(InputError, match="replay.json: steps: expected"):
        read_replays(tmp_path)
