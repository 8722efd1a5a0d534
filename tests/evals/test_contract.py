"""The contract of evaluations: in a training run and by the command, with the same results."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxpretrain import evaluate
from jaxpretrain.config.errors import InputError
from jaxpretrain.evals.config import Eval
from jaxpretrain.evals.perplexity import Perplexity
from jaxpretrain.evals.scoring.scorer import Scorer
from jaxpretrain.storage.jsonl import read_lines
from jaxpretrain.train.experiment import Experiment, resolve
from jaxpretrain.train.run import train_experiment
from jaxpretrain.train.trained import load_trained


def test_tasks_do_not_change_the_training_by_a_bit(
    experiment: Experiment, package: Path, tmp_path: Path
):
    tasks = replace(experiment.eval, tasks=("colours",), task_items=2, tokenizer="small")
    runs = {"without": experiment, "with": replace(experiment, eval=tasks)}
    for name, run in runs.items():
        assert train_experiment(resolve(run), tmp_path / name)
    without, with_ = (load_trained(tmp_path / name).params for name in runs)
    named = dict(_leaves(without))
    for name, leaf in _leaves(with_):
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(named[name]), err_msg=name)
    lines = (tmp_path / "with" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    evaluated = {row["step"] for row in rows if "eval/colours/len_norm" in row}
    assert evaluated == {0, 2, 4}


def test_a_run_and_the_command_measure_the_same(
    experiment: Experiment, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Held-out loss, perplexity of files, and the first items of tasks, by name or as the run's."""
    np.arange(200).astype("<u2").tofile(tmp_path / "files.npy")
    evals = replace(
        experiment.eval,
        tasks=("colours", "roses"),
        task_items=2,
        tokenizer="small",
        perplexity=Perplexity({"files": (str(tmp_path / "files.npy"),)}),
    )
    assert train_experiment(resolve(replace(experiment, eval=evals)), tmp_path / "run")
    lines = [x for x in read_lines(tmp_path / "run" / "metrics.jsonl") if "eval/files/loss" in x]
    assert [line["step"] for line in lines] == [0, 2, 4]
    logged = {
        name: value
        for line in read_lines(tmp_path / "run" / "metrics.jsonl")
        for name, value in line.items()
        if line["step"] == 4 and name.startswith("eval/")
    }
    capsys.readouterr()
    run = f"--checkpoint={tmp_path / 'run'}"
    assert evaluate.main([run, "--json"]) == 0
    own = json.loads(capsys.readouterr().out)
    assert {k: v for k, v in own["own"].items() if k.startswith("eval/")} == _close(logged)
    named = [f"--perplexity=files={tmp_path / 'files.npy'}", "--tasks=colours,roses", "--limit=2"]
    # The batches of the run's own evaluations: an example of 32 tokens for each device.
    assert evaluate.main([run, *named, "--batch_tokens=32", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["own"] == {} and document["tasks"]["colours"]["num_items"] == 2
    for kind in ("tasks", "groups", "harness", "perplexity"):
        assert document[kind] == own[kind]


def test_a_name_of_a_validation_set_is_refused(make_setting: Any, tmp_path: Path):
    np.arange(200).astype("<u2").tofile(tmp_path / "files.npy")
    evals = Eval(perplexity=Perplexity({"files": (str(tmp_path / "files.npy"),)}))
    setting, _ = make_setting(eval_sets=[SimpleNamespace(name="files")])
    with pytest.raises(InputError, match="eval.perplexity.sets: files is the name of a validation"):
        evals.build(setting)


def test_nothing_is_compiled_before_it_is_asked_for(
    make_setting: Any, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And a shape of batches that evaluators share is compiled once."""
    compiled = []
    compile_ = Scorer._compile
    monkeypatch.setattr(Scorer, "_compile", lambda *args: compiled.append(1) or compile_(*args))
    np.arange(200).astype("<u2").tofile(tmp_path / "files.npy")
    sets = {name: (str(tmp_path / "files.npy"),) for name in ("one", "two")}
    evals = Eval(tasks=("colours",), tokenizer="small", perplexity=Perplexity(sets))
    setting, _ = make_setting()
    evaluators = evals.build(setting)
    assert len(evaluators) == 2 and not compiled
    for evaluator in evaluators:
        evaluator.compile()
    num_compiled = len(compiled)
    for evaluator in evaluators:
        evaluator.compile()
    assert len(compiled) == num_compiled > 0


def _close(numbers: dict[str, Any]) -> dict[str, Any]:
    return {name: x if x is None else pytest.approx(x, rel=1e-5) for name, x in numbers.items()}


def _leaves(tree: dict, prefix: str = ""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value
