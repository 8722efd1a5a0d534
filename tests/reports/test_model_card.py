import json
import re
from pathlib import Path

from jaxpretrain.reports.model_card import model_card, write_card
from tests.reports.conftest import make_run

CONFIG = {"architectures": ["Olmo2ForCausalLM"], "hidden_size": 64, "vocab_size": 8192}


def _run(folder: Path) -> Path:
    run = make_run(folder, "clipping")
    path = run / "experiment.json"
    document = json.loads(path.read_text())
    document["data_description"] = "/home/me/data/books: 1,000 tokens in 2 files"
    path.write_text(json.dumps(document))
    return run


def test_the_card_tells_what_was_measured_up_to_the_step(tmp_path: Path):
    run = _run(tmp_path / "books")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["train/loss"] for line in lines if line.get("train/loss")}
    step = sorted(losses)[len(losses) // 2]
    card = model_card(run, step, CONFIG, 1234567)
    assert f"| `train/loss` | {losses[step]:.4f} | {step:,} |" in card
    assert "| Architecture | `Olmo2ForCausalLM` |" in card
    assert "| Parameters | 1,234,567 |" in card and "| Width | 64 |" in card
    assert "| Data | books: 1,000 tokens in 2 files |" in card and "/home/me" not in card
    (settings,) = re.findall(r"```json\n(.*?)```", card, re.S)
    document = json.loads((run / "experiment.json").read_text())
    assert json.loads(settings)["optim"]["clip_norm"] == document["config"]["optim"]["clip_norm"]
    head = card.split("---\n")[1].splitlines()
    assert head[0].startswith("license:  # fill in")


def test_the_card_lies_beside_the_config(tmp_path: Path):
    run, folder = _run(tmp_path / "books"), tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_card(folder, run, 100, 10)
    assert (folder / "README.md").read_text() == model_card(run, 100, CONFIG, 10)
    write_card(folder, run, 100, 10, num_merged=3)
    card = (folder / "README.md").read_text()
    assert "The weights are the mean of 3 checkpoints" in card and "train/loss" not in card
    (run / "metrics.jsonl").unlink()
    (folder / "README.md").unlink()
    write_card(folder, run, 100, 10)  # of a folder that was converted and not trained
    assert not (folder / "README.md").exists()
