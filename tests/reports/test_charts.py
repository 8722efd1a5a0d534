from dataclasses import replace

import numpy as np
import pytest

from jaxpretrain.reports.charts import COLUMNS, charts, layer_charts, loss_chart
from jaxpretrain.reports.runs import grouped
from tests.reports.conftest import STEPS, figures, make_run, page_of, run_with


def by_key(*runs):
    return {chart.key: chart for chart in charts(runs)}


def test_runs_compare(tmp_path):
    runs = [make_run(tmp_path / n, f"healthy_{n}") for n in ("triangular", "cosine")]
    html = page_of(runs)
    names = {trace["name"] for trace in figures(html)["loss"]["traces"]}
    assert {"triangular: training", "cosine: training"} <= names
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
    assert names == ["training", "training", "validation on a", "learning rate"]
    assert [trace.get("opacity") for trace in made["loss"].traces[:2]] == [0.3, None]
    assert made["validation_perplexity"].signals == ("eval/a/perplexity",)
    assert made["validation_perplexity"].title == "Validation on a: perplexity"


def test_baselines_of_the_data_are_named_levels(history):
    rows = [
        {"name": "bigram<", "nats_per_token": 4.5, "bits_per_byte": 1.4},
        {"name": "gzip", "nats_per_token": None, "bits_per_byte": 2.6},
    ]
    values = {"train__loss": 5 - STEPS / 1000, "eval__a__loss": 1.0 + 0 * STEPS}
    values |= {"eval__a__bits_per_byte": STEPS / 1000, "eval__a__loss_predict_zero": 1 + 0 * STEPS}
    made = by_key(replace(run_with(history, **values), baseline_rows=rows))
    for key, expected in (
        ("loss", {"bigram&lt;": 4.5, "predicting zero": 1.0}),
        ("validation_bits_per_byte", {"bigram&lt;": 1.4}),
    ):
        named = {s["name"]: s["y0"] for s in made[key].layout["shapes"] if "name" in s}
        assert named == expected


def test_equal_configs_are_a_mean_with_a_band(history):
    runs = [
        run_with(history, f"r{n}", config={"seed": n, "rate": 1}, train__loss=n + 5 - STEPS / 1000)
        for n in (0, 2)
    ]
    made = by_key(*runs)["loss"]
    band, mean = made.traces[:2]
    assert band["band"] and mean["name"].startswith("mean of 2")
    assert (min(band["y"]), max(band["y"])) == pytest.approx((4.0, 7.0), abs=0.05)
    assert mean["y"][0] == pytest.approx(6.0, abs=0.05)
    assert "bands reach from lowest to highest" in made.note


def test_phases_are_shades_and_sessions_are_lines(history):
    run = run_with(history, train__loss=5 - STEPS / 1000)
    marks = history([0, 300], {"run/num_devices": [8, 8]}).series
    run = replace(run, history=type(run.history)({**run.history.series, **marks}))
    shapes = loss_chart(grouped([run]), [run]).layout["shapes"]
    assert [(s["x0"], s["x1"]) for s in shapes if s["type"] == "rect"] == [(0, 200), (200, 1000)]
    assert [s["x0"] for s in shapes if s["type"] == "line"] == [300]
    assert loss_chart(grouped([run]), [run]).note.endswith("Dashed: a session begins.")
    assert [a["text"] for a in loss_chart(grouped([run]), [run]).layout["annotations"]] == [
        "warmup",
        "decay",
    ]


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
    assert arc.layout["shapes"][0]["name"] == "guessing"
    assert arc.note == "Bars are one standard error."


def test_clipped_gradients_are_counted_over_a_hundred_reports(history):
    norms = np.where(STEPS <= 500, 0.5, 2.0)
    made = by_key(run_with(history, train__grad_norm=norms))
    (trace,) = made["clipped"].traces
    assert (trace["x"][0], trace["y"][0], trace["y"][-1]) == (100, 0.0, 1.0)
    assert [shape["y0"] for shape in made["grad_norm"].layout["shapes"]] == [1.0]


def test_both_figures_of_mfu_have_charts_and_the_time_left_has_none(history):
    run = run_with(
        history,
        perf__mfu=0.4 + 0.0 * STEPS,
        perf__mfu_full_attention=0.45 + 0.0 * STEPS,
        perf__eta_seconds=9.0 + 0.0 * STEPS,
    )
    made = charts([run])
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
    assert titles == {"Loss, by source", "wiki tower", "Squared log-partition function (z)"}


def test_layers_are_maps_with_all_their_steps(tmp_path):
    html = page_of([make_run(tmp_path / "run", "attention_logits_growing")])
    shown = {key: figure for key, figure in figures(html).items() if key.startswith("layers_")}
    assert len(shown) == 5
    for figure in shown.values():
        (trace,) = figure["traces"]
        assert len(trace["z"]) == len(trace["customdata"]) == 2  # layers
        assert trace["x"] == list(range(10, 401, 10))
        assert len(trace["colorbar"]["tickvals"]) > 1
    assert "Largest attention logit by layer" in html
    assert 'data-plot="layers_3"' in html  # the finding leads there


def signals(history, **values):
    return run_with(history, **{f"signals__{name}": value for name, value in values.items()})


def test_a_long_map_shows_the_largest_value_of_each_stretch(history):
    values = np.ones((1000, 3))
    values[503, 1] = 100.0
    (chart,) = layer_charts(signals(history, grad_norm__blocks=values))
    (trace,) = chart.traces
    assert chart.title == "Gradient norm by layer"
    assert len(trace["x"]) == COLUMNS and trace["x"][100] == 501
    assert trace["customdata"][1][100] == 100.0 and trace["z"][1][100] == 2.0
    assert sum(map(sum, trace["customdata"])) == 3 * COLUMNS + 99
    (narrow,) = layer_charts(signals(history, grad_norm__blocks=values), columns=20)
    assert len(narrow.traces[0]["x"]) == 20


def test_the_encoder_comes_before_the_decoder(history):
    ones = np.ones((1000, 2))
    run = signals(history, param_norm__decoder__blocks=ones, param_norm__encoder__blocks=ones)
    titles = [chart.title for chart in layer_charts(run)]
    assert titles == ["Weight norm by encoder layer", "Weight norm by decoder layer"]


def test_parts_outside_of_layers_are_curves_of_one_chart(history):
    run = signals(history, grad_norm__embed=1.0 + STEPS, grad_norm__head=2.0 + STEPS)
    (chart,) = layer_charts(run)
    assert chart.title == "Gradient norm outside of layers"
    assert [trace["name"] for trace in chart.traces] == ["embed", "head"]
    assert [one.key for one in layer_charts(run, "run3_")] == ["run3_outside_grad_norm"]
