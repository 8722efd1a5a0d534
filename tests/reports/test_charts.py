from dataclasses import replace

import numpy as np
import pytest

from jaxpretrain.diagnosis.intent import Plan
from jaxpretrain.reports.charts import charts, loss_chart
from jaxpretrain.reports.runs import Run
from tests.reports.conftest import figures, make_run, page_of

PLAN = Plan(
    1000, [("warmup", 0), ("decay", 200)], lambda s: 0 * np.asarray(s) + 1e-3, clip_norm=1.0
)
STEPS = np.arange(1, 1001)


def run_with(history, name="run", steps=STEPS, **values):
    named = {n.replace("__", "/"): v for n, v in values.items()}
    return Run(name, history(steps, named), PLAN, {}, {}, [], now=0.0)


def by_key(*runs):
    return {chart.key: chart for chart in charts(runs)}


def test_runs_compare(tmp_path):
    runs = [make_run(tmp_path / n, f"healthy_{n}") for n in ("triangular", "cosine")]
    html = page_of(runs)
    names = {trace["name"] for trace in figures(html)["loss"]["traces"]}
    assert {"triangular training, smoothed", "cosine training, smoothed"} <= names
    assert "optim.schedule.class" in html and "warmup_cosine" in html


def test_only_charts_with_data_are_made(history):
    made = by_key(run_with(history, train__loss=5.0 - STEPS / 1000))
    assert set(made) == {"loss"}


def test_validation_sets_are_curves_of_the_loss_chart_and_of_their_own(history):
    run = run_with(
        history, train__loss=5 - STEPS / 1000, eval__a__loss=1.0 * STEPS, eval__a__perplexity=STEPS
    )
    made = by_key(run)
    names = [trace["name"] for trace in made["loss"].traces]
    assert names == ["training", "training, smoothed", "a", "learning rate"]
    assert made["validation_perplexity"].signals == ("eval/a/perplexity",)


def test_phases_are_shades_and_sessions_are_lines(history):
    run = run_with(history, train__loss=5 - STEPS / 1000)
    marks = history([0, 300], {"run/num_devices": [8, 8]}).series
    run = replace(run, history=type(run.history)({**run.history.series, **marks}))
    shapes = loss_chart([run]).layout["shapes"]
    assert [(s["x0"], s["x1"]) for s in shapes if s["type"] == "rect"] == [(0, 200), (200, 1000)]
    assert [s["x0"] for s in shapes if s["type"] == "line"] == [300]
    assert [a["text"] for a in loss_chart([run]).layout["annotations"]] == ["warmup", "decay"]


def test_a_task_has_its_standard_error_and_the_level_of_guessing(history):
    steps = np.arange(0, 50, 10)
    run = run_with(
        history,
        steps=steps,
        eval__arc__accuracy=0.25 + steps / 100,
        eval__arc__accuracy_stderr=0.02 + 0.0 * steps,
        eval__arc__random=0.25 + 0.0 * steps,
        eval__boolq__accuracy=0.5 + steps / 100,
        eval__boolq__accuracy_stderr=0.02 + 0.0 * steps,
    )
    made = by_key(run)
    assert made["mean_accuracy"].traces[0]["y"] == pytest.approx(list(0.375 + steps / 100))
    arc = next(chart for chart in made.values() if chart.title == "arc: accuracy")
    assert arc.traces[0]["error_y"]["array"] == [0.02] * 5
    assert arc.layout["shapes"][0]["y0"] == 0.25
    assert arc.note == "Bars are one standard error. Dotted: guessing."


def test_clipped_gradients_are_counted_over_a_hundred_reports(history):
    norms = np.where(STEPS <= 500, 0.5, 2.0)
    made = by_key(run_with(history, train__grad_norm=norms))
    (trace,) = made["clipped"].traces
    assert (trace["x"][0], trace["y"][0], trace["y"][-1]) == (100, 0.0, 1.0)
    assert [shape["y0"] for shape in made["grad_norm"].layout["shapes"]] == [1.0]


def test_both_figures_of_mfu_have_charts_and_the_time_left_has_none(history):
    speed = {"perf__mfu": 0.4, "perf__mfu_full_attention": 0.45, "perf__eta_seconds": 9.0}
    made = charts([run_with(history, **{n: x + 0.0 * STEPS for n, x in speed.items()})])
    assert [chart.title for chart in made if chart.key.startswith("perf_")] == [
        "Model FLOPs utilisation",
        "Model FLOPs utilisation, all pairs of attention counted",
    ]


def test_other_metrics_are_grouped_by_what_their_names_share(history):
    made = by_key(
        run_with(
            history,
            train__wiki__loss=STEPS,
            train__web__loss=STEPS,
            train__wiki__tower__rms=STEPS,
            train__wiki__tower__max=STEPS,
            train__z=STEPS,
            train__tokens=STEPS,
        )
    )
    titles = {chart.title for key, chart in made.items() if key.startswith("other_")}
    assert titles == {"*/loss", "train/wiki/tower/*", "train/z"}
