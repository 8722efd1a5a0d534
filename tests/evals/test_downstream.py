from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.evals.config import Eval
from jaxpretrain.evals.contract import Setting
from jaxpretrain.evals.downstream import Downstream, Report
from jaxpretrain.evals.output import CheckpointResults
from jaxpretrain.evals.scoring.encode import TextEncoder
from jaxpretrain.evals.scoring.scorer import Scorer
from jaxpretrain.evals.tasks.catalogue import GROUPS, Selection, select
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.parallel.mesh import Layout, Mesh

EXAMPLE = {"tokens": ((48,), "int32")}
DECODER = Decoder(
    vocab_size=290, embedding_rows=304, d_model=32, num_layers=1, num_heads=4, d_ff=32
)


@pytest.fixture
def selection(package: Path, monkeypatch: pytest.MonkeyPatch) -> Selection:
    monkeypatch.setitem(GROUPS, "all", ("colours", "colours:mc_5shot", "roses"))
    return select(["all"])


def _compiled(scorer: Scorer, encode: TextEncoder, selection: Selection) -> Downstream:
    downstream = Downstream(scorer, encode, selection)
    downstream.compile()
    return downstream


def _report(scorer: Scorer, encode: TextEncoder, selection: Selection, params: Any) -> Report:
    return _compiled(scorer, encode, selection).report(params)


def test_items_get_the_likelihoods_of_their_own_choices(
    make_scorer: Any, encode: TextEncoder, selection: Selection, log_likelihood: Any
):
    scorer, params = make_scorer()
    report = _report(scorer, encode, selection, params)
    assert [result.task for result in report.tasks] == list(selection.tasks)
    for result in report.tasks:
        assert [scored.item for scored in result.scored] == list(result.task.items)
        for scored in result.scored:
            for i, choice in enumerate(scored.item.choices):
                texts = choice.context, choice.continuation, choice.unconditional or ""
                context, continuation, without = encode(texts).values()
                expected = log_likelihood(context, continuation)
                assert scored.conditional[i] == pytest.approx(expected, rel=2e-5)
                if scored.unconditional is not None:
                    expected = log_likelihood(without, continuation)
                    assert scored.unconditional[i] == pytest.approx(expected, rel=2e-5)


def test_a_group_is_the_mean_of_its_tasks(
    make_scorer: Any, encode: TextEncoder, selection: Selection
):
    scorer, params = make_scorer()
    report = _report(scorer, encode, selection, params)
    by_name = {result.task.name: result.metrics for result in report.tasks}
    means = report.groups["all"]
    accuracies = [by_name["colours"]["len_norm"], by_name["colours:mc_5shot"]["acc"]]
    assert means["primary"] == pytest.approx(np.mean(accuracies))
    assert means["random"] == 0.5
    assert means["bpb"] == pytest.approx(np.mean([m["bpb"] for m in by_name.values()]))


def test_the_loop_gets_named_numbers(make_scorer: Any, encode: TextEncoder, selection: Selection):
    scorer, params = make_scorer()
    scalars = _compiled(scorer, encode, selection)(params).scalars
    expected = {"acc", "len_norm", "len_norm_stderr", "pmi_dc", "random", "bpb", "soft"}
    assert {f"eval/colours/{name}" for name in expected} <= scalars.keys()
    assert {"eval/all/primary", "eval/all/bpb", "perf/eval_requests_per_second"} <= scalars.keys()
    assert all(np.isfinite(value) for value in scalars.values())


def test_devices_do_not_change_results(make_scorer: Any, encode: TextEncoder, selection: Selection):
    one, eight = (
        _report(scorer, encode, selection, params)
        for scorer, params in (make_scorer(1), make_scorer(8))
    )
    for a, b in zip(one.tasks, eight.tasks, strict=True):
        assert a.metrics == pytest.approx(b.metrics, rel=1e-5)


def test_truncated_prompts_are_counted(make_scorer: Any, encode: TextEncoder, tmp_path: Path):
    file = tmp_path / "own.jsonl"
    lines = [
        f'{{"context": "{"zq" * n}", "continuations": [" a", " b"], "answer": 0}}\n'
        for n in (10, 30)
    ]
    file.write_text("".join(lines))
    scorer, params = make_scorer()
    (result,) = _report(scorer, encode, select([str(file)]), params).tasks
    assert result.metrics["num_truncated"] == 2
    assert result.metrics["num_items"] == 2


def test_truncated_unconditional_prompts_are_counted_too(
    make_scorer: Any, encode: TextEncoder, tmp_path: Path
):
    file = tmp_path / "own.jsonl"
    long = "zq" * 40
    file.write_text(
        f'{{"context": "a", "unconditional_context": "{long}", "continuations": [" a", " b"],'
        ' "answer": 0}\n'
    )
    scorer, params = make_scorer()
    (result,) = _report(scorer, encode, select([str(file)]), params).tasks
    assert result.metrics["num_truncated"] == 2


def test_items_that_are_too_long_are_left_out_counted_and_told(
    make_scorer: Any, encode: TextEncoder, tmp_path: Path
):
    """The others are scored as without them."""
    line = '{{"context": "red", "continuations": [" a", "{}"], "answer": 0}}\n'
    files = {"all": [" b", "zq" * 60, " no"], "some": [" b", " no"]}
    for name, texts in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(map(line.format, texts)))
    scorer, params = make_scorer()
    names = [f"{name}={tmp_path / name}.jsonl" for name in files]
    downstream = _compiled(scorer, encode, select(names))
    with_, without = downstream.report(params).tasks
    assert (with_.metrics["num_items"], with_.metrics["num_left_out"]) == (2, 1)
    assert without.metrics["num_left_out"] == 0
    assert with_.metrics == {**without.metrics, "num_left_out": 1}
    note = "all: items left out because a continuation is longer than the context: 1"
    assert downstream.notes() == [note]
    assert note in CheckpointResults(1, [downstream(params)]).table()
    scalars = downstream(params).scalars
    assert scalars["eval/all/num_left_out"] == 1 and "eval/some/num_left_out" not in scalars


def _setting(tokenizer_path: Path | None, *names: str) -> Setting:
    layout = Layout(Mesh().build(jax.devices()[:1]))
    model = DECODER.build(EXAMPLE, platform="cpu")
    sets: list[Any] = [SimpleNamespace(name=name) for name in names]
    source: Any = None
    return Setting(model, layout, {}, source, sets, batch_size=1, tokenizer_path=tokenizer_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ("colors",)}, "unknown task 'colors'"),
        ({"tasks": ("colours",)}, "eval.tasks need a tokenizer, and the data has none"),
        ({"tasks": ("colours",), "tokenizer": "smal"}, "Did you mean 'small'"),
        ({"tasks": ("colours", "all"), "tokenizer": "small"}, "all is the name of a validation"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_training(
    selection: Selection, options: dict[str, Any], message: str
):
    if "colors" in options["tasks"]:
        options = {**options, "tokenizer": "small"}
    with pytest.raises(InputError, match=message):
        Eval(**options).build(_setting(None, "all"))
