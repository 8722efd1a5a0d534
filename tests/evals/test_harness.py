"""Tasks of lm-evaluation-harness as a part of the config: refusals, and a training run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jaxpretrain import evaluate
from jaxpretrain.config.errors import InputError
from jaxpretrain.evals.harness import Harness
from jaxpretrain.storage.jsonl import read_lines
from jaxpretrain.train.experiment import Experiment, resolve
from jaxpretrain.train.run import train_experiment

TASK = {
    "task": "colours",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "Question: Which is {{colour}}?\nAnswer:",
    "doc_to_choice": ["rose", "sea"],
    "doc_to_target": 1,
    "metric_list": [{"metric": "acc"}],
}


@pytest.mark.parametrize(
    ("harness", "message"),
    [
        (Harness(), "eval.harness.tasks is empty"),
        (Harness(("x",), "/nowhere"), "eval.harness.folder=/nowhere: no such folder"),
        (Harness(("x",)), "eval.harness.tasks need a tokenizer, and the data has none: set eval"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(make_setting: Any, harness: Harness, message: str):
    with pytest.raises(InputError, match=message):
        harness.build(make_setting()[0])


def test_a_run_and_the_command_measure_the_same(
    experiment: Experiment,
    tokenizer: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    """The first two items of a task of one's own, at each evaluation of a run."""
    pytest.importorskip("lm_eval")
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [json.dumps({"colour": colour}) for colour in ("red", "blue", "yellow")]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    data = {"data_files": {"test": str(folder / "rows.jsonl")}}
    (folder / "colours.yaml").write_text(json.dumps({**TASK, "dataset_kwargs": data}))
    harness = Harness(("colours",), str(folder))
    evals = replace(experiment.eval, harness=harness, task_items=2, tokenizer=str(tokenizer))
    assert train_experiment(resolve(replace(experiment, eval=evals)), tmp_path / "run")
    name = "eval/colours/acc,none"
    lines = [line for line in read_lines(tmp_path / "run" / "metrics.jsonl") if name in line]
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert lines[-1]["eval/colours/acc_stderr,none"] >= 0
    flags = ["--harness=colours", f"--harness_folder={folder}", "--limit=2", "--json"]
    capsys.readouterr()
    assert evaluate.main([f"--checkpoint={tmp_path / 'run'}", *flags]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["harness"]["colours"]["acc,none"] == lines[-1][name]
