import json
import re
from pathlib import Path

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import to_dict
from jaxpretrain.laws.runs import points_in, scores_in
from jaxpretrain.laws.sizes import configured, size_of
from jaxpretrain.storage.run_documents import PredictionFile
from tests.sweeps.tiny import write_config


@pytest.fixture
def make_run(tmp_path):
    """(name, settings, values at the end) -> the folder of a run of 100 steps."""
    config = str(write_config(tmp_path))

    def make(name, settings=(), *, steps=100, rates=None, **last):
        experiment = configured(config, (("train.duration", "100 steps"), *settings))
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        document = {"config": to_dict(experiment)}
        (folder / "experiment.json").write_text(json.dumps(document))
        rates = np.linspace(1, 0.1, 11) if rates is None else rates
        with (folder / "metrics.jsonl").open("w") as file:
            for step, rate in zip(range(0, steps + 1, 10), rates, strict=False):
                record = {"step": step, "time": step, "train/loss": 5 - step / 100}
                record |= {"train/learning_rate": rate}
                record |= {n.replace("__", "/"): round(x + 100 - step, 6) for n, x in last.items()}
                file.write(json.dumps(record) + "\n")
        return experiment

    return make


def test_finished_runs_are_points(make_run, tmp_path):
    one = make_run("a/seed1", eval__held__loss=3.0)
    make_run("b/seed1", [("model.d_ff", "40")], eval__held__loss=2.9)
    make_run("c/seed1", steps=50, eval__held__loss=1.0)
    points = points_in([tmp_path / "runs"], None)
    assert points.metric == "eval/held/loss"
    assert points.losses.tolist() == [3.0, 2.9]
    assert (points.parameters[0], points.tokens[0]) == (size_of(one).parameters, 100 * 8 * 16)
    assert points.parameters[1] - points.parameters[0] == 3 * 16 * 8
    assert "c/seed1: not finished (50 of 100)" in points.warnings[0]
    assert points_in([tmp_path / "runs"], None, last=2).losses.tolist() == [8.0, 7.9]
    assert points_in([tmp_path / "runs"], "train/loss").losses == pytest.approx([4.05, 4.05])


def test_a_run_is_no_point_of_its_own_hindcast(make_run, tmp_path):
    make_run("a", eval__held__loss=3.0)
    make_run("b", eval__held__loss=2.9)
    folders = [tmp_path / "runs"]
    points = points_in(folders, None, predicted=tmp_path / "runs" / "x" / ".." / "b")
    assert points.losses.tolist() == [3.0]
    assert len(points_in(folders, None, predicted=tmp_path / "elsewhere")) == 2


@pytest.mark.parametrize("late", [False, True])
def test_a_prediction_that_is_younger_than_its_run_is_a_hindcast(make_run, tmp_path, late):
    make_run("a", eval__held__loss=3.0)
    time = f"{'2026' if late else '1969'}-01-01T00:00:00+00:00"
    put_prediction(tmp_path / "runs" / "a", time=time)
    (score,), unscored = scores_in([tmp_path / "runs"])
    assert unscored == []
    assert (score["measured"], score["is_inside"], score["hindcast"]) == (3.0, True, late)
    assert score["error"] == pytest.approx(3.1 / 3.0 - 1)


def put_prediction(folder, **changes):
    """Writes a prediction of 3.1 for a held-out loss, by default about no certain size."""
    said = PredictionFile("eval/held/loss", 3.1, 2.9, 3.2, "1969-01-01T00:00:00+00:00", "hash", 4.0)
    (folder / "prediction.json").write_text(json.dumps(vars(said) | changes))


@pytest.mark.parametrize(
    ("steps", "changes", "words"),
    [
        (100, {"parameters": 1.04, "tokens": 0.96}, None),
        (100, {"parameters": 1.1}, "about 3.94k parameters, and the run has 3.58k"),
        (50, {"tokens": 0.5}, "no score, because the prediction is about 6.4k tokens, and"),
        (50, {}, r"no score yet \(50 of 100 steps\)"),
        (100, {"metric": "eval/hold/loss"}, "no eval/hold/loss at its end; it has eval/held/loss"),
    ],
)
def test_a_prediction_without_a_score_says_why(make_run, tmp_path, steps, changes, words):
    size = size_of(make_run("a", steps=steps, eval__held__loss=3.0))
    sizes = {name: changes[name] * getattr(size, name) for name in vars(size) if name in changes}
    put_prediction(tmp_path / "runs" / "a", **(changes | sizes))
    scores, unscored = scores_in([tmp_path / "runs"])
    assert (len(scores), len(unscored)) == ((1, 0) if words is None else (0, 1))
    assert words is None or re.search(words, unscored[0])


def test_runs_that_were_not_cooled_are_doubted(make_run, tmp_path):
    make_run("constant", rates=np.ones(11))
    make_run("brief", rates=[*np.ones(10), 0.1])
    make_run("cooled")
    warnings = points_in([tmp_path / "runs"], None).warnings
    assert len(warnings) == 2
    assert "brief: cooled in 10% of its steps, too briefly" in warnings[0]
    assert "constant: not cooled: its learning rate ends at 100%" in warnings[1]


def test_tasks_are_those_that_all_runs_have(make_run, tmp_path):
    values = {"eval__arc__bpb": 1.0, "eval__arc__acc": 0.4, "eval__piqa__bpb": 1.0}
    make_run("a", **values)
    make_run("b", **values)
    ((name, (bits, shares)),) = points_in([tmp_path / "runs"], None).tasks.items()
    assert (name, bits.tolist(), shares.tolist()) == ("arc/acc", [1.0, 1.0], [0.4, 0.4])


def test_bad_input_is_one_line(make_run, tmp_path):
    make_run("a", eval__held__loss=3.0)
    folder = tmp_path / "runs"
    for call, words in (
        (lambda: points_in([folder / "none"], None), "holds no run"),
        (lambda: points_in([folder], "eval/hold/loss"), "Did you mean 'eval/held/loss'"),
        (lambda: points_in([folder], "train/learning_rate"), "about a loss"),
        (lambda: points_in([folder], None, last=12), "a has 11 values of eval/held/loss"),
        (lambda: points_in([folder], "train/loss", last=2), "mean over the last tenth"),
        (lambda: points_in([folder / "a" / "metrics.jsonl"], None), "given as --points=FILE"),
    ):
        with pytest.raises(InputError, match=words):
            call()
    make_run("b", steps=20)
    with pytest.raises(InputError, match="no run is a finished point: .*b: not finished"):
        points_in([folder / "b"], None)
    put_prediction(folder / "a")
    with pytest.raises(InputError, match="they were predicted; name the folder of the runs"):
        points_in([folder / "a"], None)


def test_the_end_of_a_run_is_a_finite_number(make_run, tmp_path):
    make_run("a", eval__held__loss=3.0)
    make_run("b", eval__held__loss=np.nan)
    with pytest.raises(InputError, match="b: has no finite eval/held/loss at its end"):
        points_in([tmp_path / "runs"], None)


def test_a_run_is_one_point_by_whatever_names(make_run, tmp_path, monkeypatch):
    make_run("a", eval__held__loss=3.0)
    monkeypatch.chdir(tmp_path)
    assert points_in([Path("runs"), tmp_path / "runs", Path("runs/a")], None).names == ("runs/a",)
