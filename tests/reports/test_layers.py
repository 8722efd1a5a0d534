import numpy as np

from jaxpretrain.diagnosis.intent import Plan
from jaxpretrain.reports.layers import COLUMNS, layer_charts
from jaxpretrain.reports.runs import Run
from tests.reports.conftest import figures, make_run, page_of

PLAN = Plan(1000, [], lambda s: 0 * np.asarray(s) + 1e-3)
STEPS = np.arange(1, 1001)


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
    named = {f"signals/{n.replace('__', '/')}": v for n, v in values.items()}
    return Run("run", history(STEPS, named), PLAN, {}, {}, [], now=0.0)


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
