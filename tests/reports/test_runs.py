import json
from pathlib import Path

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.diagnosis.history import Series
from jaxpretrain.diagnosis.intent import TrainingPlan
from jaxpretrain.reports.runs import (
    QUIET,
    RunHistory,
    common_folder,
    differences,
    grouped,
    read_run,
    read_runs,
    run_folders,
    shared,
)
from jaxpretrain.storage.jsonl import add_part
from tests.reports.conftest import make_run, run_with

PLAN = TrainingPlan(1000, [], lambda s: 0 * np.asarray(s) + 1e-3)


def test_a_folder_is_read_with_its_plan_and_its_samples(tmp_path):
    run = read_run(make_run(tmp_path / "run", "clipping", torn=True))
    assert run.name == "run" and run.planned == {}
    assert run.plan.clip_norm == run.document["config"]["optim"]["clip_norm"]
    assert [line["step"] for line in run.samples] == [100]
    assert run.severity == "warning"
    assert run.is_finished


def test_a_folder_without_metrics_is_no_run(tmp_path):
    with pytest.raises(InputError, match="no run has written"):
        read_run(tmp_path)


def test_a_run_without_documents_is_read_from_its_metrics(tmp_path):
    line = {"step": 3, "time": 1.0, "train/loss": 2.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    run = read_run(tmp_path)
    assert (run.document, run.planned, run.samples) == ({}, {}, [])
    assert run.plan.total_steps == 3 and run.is_finished


def run_of(history, now, **marks):
    steps = np.arange(1, 101)
    values = {"train/loss": 5 - steps / 100, "time/train_seconds": 0.5 * steps}
    return RunHistory("run", history(steps, values, **marks), PLAN, {}, {}, [], now=now)


def test_a_run_is_quiet_after_a_time_that_is_long_for_it(history):
    assert not run_of(history, 100 + QUIET).is_quiet
    assert run_of(history, 101 + QUIET).is_quiet
    assert not run_of(history, 101 + QUIET).is_finished


def test_time_is_lost_to_restarts_alone(history):
    """The reports span 99 seconds, of which the clock has counted 50."""
    assert run_of(history, 0.0).lost_seconds == 0.0
    marks = history([0, 50], {"run/num_devices": [8, 8]}).series
    assert run_of(history, 0.0, **marks).lost_seconds == pytest.approx(50.0)


def test_earlier_forecasts_are_those_before_the_end(history):
    steps = np.arange(1, 501)
    loss = 2 + 3 * (steps / 10) ** -0.3
    run = RunHistory("run", history(steps, {"train/loss": loss}), PLAN, {}, {}, [], now=0.0)
    assert [one.step for one in run.earlier_forecasts] == [100, 200, 300]


def test_runs_of_the_same_name_are_told_apart_by_their_folders(tmp_path):
    folders = [make_run(tmp_path / n / "run", "clipping") for n in ("a", "b")]
    assert [run.name for run in read_runs(folders)] == ["a/run", "b/run"]


def test_runs_below_a_folder_are_found_and_each_once(tmp_path):
    run = make_run(tmp_path / "runs" / "a", "clipping")
    (tmp_path / "empty").mkdir()
    found = run_folders([tmp_path / "runs", run, tmp_path / "empty"])
    assert found == ([run], [tmp_path / "empty"])
    with pytest.raises(InputError, match="no run has written metrics there"):
        run_folders([tmp_path / "empty"])
    with pytest.raises(InputError, match="nowhere does not exist"):
        run_folders([run, tmp_path / "nowhere"])


def test_the_final_loss_is_the_mean_of_the_last_steps(history):
    assert run_of(history, 0.0).final_loss == pytest.approx(5 - 95 / 100)
    assert RunHistory("a", history([], {}), PLAN, {}, {}, [], now=0.0).final_loss is None


def test_baselines_are_read_and_a_damaged_file_is_named(tmp_path):
    run = make_run(tmp_path / "run", "clipping")
    rows = [{"name": "bigram", "nats_per_token": 4.8, "bits_per_byte": 1.4}]
    (run / "baselines.json").write_text(json.dumps({"rows": rows}))
    assert read_run(run).baselines("bits_per_byte") == {"bigram": 1.4}
    (run / "baselines.json").write_text(json.dumps({"rows": [{"name": 3}]}))
    with pytest.raises(InputError, match=r"baselines\.json: rows\.0\.name"):
        read_run(run)


def runs_of(history, *configs):
    return [run_with(history, f"r{n}", config=c) for n, c in enumerate(configs)]


def test_runs_that_differ_in_the_seed_are_one_group_and_rates_are_on_a_scale(history):
    runs = runs_of(
        history,
        *({"optim": {"peak": p}, "seed": s, "monitor": {"every": s}}
          for p in (1e-3, 1e-2, 1e-1) for s in (1, 2)),
    )  # fmt: skip
    groups = grouped(runs)
    assert [group.name for group in groups] == [f"peak {p}, mean of 2" for p in (1e-3, 1e-2, 1e-1)]
    assert [[run.name for run in group.runs] for group in groups][1] == ["r2", "r3"]
    assert [group.color for group in groups] == [{"at": 0.0}, {"at": 0.5}, {"at": 1.0}]


def test_runs_that_differ_in_several_fields_or_in_words_have_colours_of_the_palette(history):
    two = runs_of(history, {"a": 1, "b": 1}, {"a": 2, "b": 2})
    assert [(g.name, g.color) for g in grouped(two)] == [("r0", 0), ("r1", 1)]
    words = runs_of(history, {"a": "x"}, {"a": "y"})
    assert [group.color for group in grouped(words)] == [0, 1]


def test_a_number_that_is_not_finite_has_no_place_on_the_scale(history):
    runs = runs_of(history, {"a": 1.0}, {"a": float("inf")}, {"a": 2.0})
    assert [group.color for group in grouped(runs)] == [0, 1, 2]


def test_a_single_run_needs_no_name_and_runs_without_a_config_are_not_alike(history):
    one, two = (run_with(history, name) for name in "ab")
    assert [group.label("training") for group in grouped([one])] == ["training"]
    assert [group.label("training") for group in grouped([one, two])] == [
        "a: training",
        "b: training",
    ]


def test_differences_have_a_value_of_each_run(history):
    runs = runs_of(history, {"a": 1, "b": 3}, {"a": 2, "b": 3}, {"a": 1, "b": 3})
    assert differences(runs) == {"a": [1, 2, 1]}


def test_a_mean_is_taken_where_all_curves_have_steps():
    one, two = (
        Series(np.array(steps), np.array(steps, float), np.array(values, float))
        for steps, values in (([1, 2, 3], [1, 2, 3]), ([2, 3, 4], [4, 5, 6]))
    )
    mean, values = shared([one, two])
    assert mean.steps.tolist() == [2, 3] and mean.values.tolist() == [3.0, 4.0]
    assert values.tolist() == [[2, 3], [4, 5]]
    assert len(shared([])[0]) == 0


def test_runs_in_a_bucket_are_read_from_their_parts(bucket, tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / name, "clipping")
        for file in (tmp_path / name).glob("*.json*"):
            remote = bucket / "runs" / name / file.name
            if file.suffix == ".jsonl":
                add_part(remote, file.read_bytes())
            else:
                remote.write_bytes(file.read_bytes())
    folders, empty = run_folders([bucket / "runs"])
    assert (folders, empty) == ([bucket / "runs" / "a", bucket / "runs" / "b"], [])
    assert common_folder(folders) == bucket / "runs"
    assert common_folder([*folders, tmp_path]) == Path.cwd()
    runs, local = read_runs(folders), read_runs([tmp_path / "a", tmp_path / "b"])
    assert [run.name for run in runs] == ["a", "b"]
    assert [run.history.step for run in runs] == [run.history.step for run in local]
