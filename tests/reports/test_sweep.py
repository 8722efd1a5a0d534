import json
from pathlib import Path
from typing import Any

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.reports.page import write_report
from jaxpretrain.reports.sweep import sweep_sections

LOSS = "eval/sotu/loss"


def _arm(name: str, mean: float, difference: float | None = None, **overrides: str) -> Any:
    found: dict[str, Any] = {"mean": mean, "stderr": 0.01, "n": 3}
    if difference is not None:
        verdict = "better" if difference < -0.02 else "no_difference"
        found |= {"difference": difference, "low": difference - 0.02, "high": difference + 0.02}
        found |= {"p": 0.01, "p_holm": 0.02, "verdict": verdict}
    return {
        "name": name,
        "overrides": [[path.replace("__", "."), text] for path, text in overrides.items()],
        "runs": [
            {"folder": f"{name}/seed0", "seed": 0, "state": "failed", "problem": "<no space>"}
        ],
        "metrics": {LOSS: found},
    }


def _document(*arms: Any) -> dict[str, Any]:
    settings = {arm["name"]: {"flops": 1e15 * place} for place, arm in enumerate(arms, 1)}
    return {
        "config": "olmo_nano",
        "control": arms[0]["name"],
        "metric": LOSS,
        "equal": ["tokens"],
        "differences": ["wide: parameters are 2.1 times the control's"],
        "planned": {"flops": 3e15, "device_hours": 1.25, "settings": settings},
        "arms": arms,
        "answer": ["<b>wide</b> is better."],
    }


def _sections(tmp_path: Path, *arms: Any) -> Any:
    (tmp_path / "sweep.json").write_text(json.dumps(_document(*arms)))
    return sweep_sections(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("control",), 3, "control"),
        (("arms",), {}, "arms"),
        (("arms", 0, "name"), None, "name"),
        (("arms", 0, "runs"), None, "runs"),
        (("arms", 0, "runs", 0, "seed"), "x", "seed"),
    ],
)
def test_a_damaged_file_is_one_line(
    tmp_path: Path, path: tuple[Any, ...], value: Any, message: str
):
    document = json.loads(json.dumps(_document(_arm("plain", 3.0))))
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (tmp_path / "sweep.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=rf"sweep\.json.*{message}"):
        sweep_sections(tmp_path)


def _rates(*rates: str) -> list[Any]:
    means = (3.0, 2.0, 2.5, 4.0)
    return [
        _arm(rate, mean, None if place == 0 else mean - means[0], optim__schedule__peak=rate)
        for place, (rate, mean) in enumerate(zip(rates, means, strict=False))
    ]


def test_the_page_begins_with_the_answer_and_escapes_names(tmp_path: Path):
    top, parts = _sections(tmp_path, _arm("plain", 3.0), _arm("wide", 2.9, -0.1))
    assert "&lt;b&gt;wide&lt;/b&gt; is better." in top and 'class="verdict warning"' in top
    assert "&lt;no space&gt;" in parts["Runs"] and "<no space>" not in parts["Runs"]
    assert "<td>better</td>" in parts["Arms"] and "<td>control</td>" in parts["Arms"]
    assert "<td>-0.120\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}-0.0800</td>" in parts["Arms"]
    assert "parameters are 2.1 times" in parts["What differs"]
    assert "<td>1.25</td>" in parts["Cost"] and "<td>tokens</td>" in parts["Cost"]


def test_differences_are_drawn_with_their_intervals_by_verdict(tmp_path: Path):
    arms = [_arm("plain", 3.0), _arm("wide", 2.9, -0.1), _arm("deep", 3.0, 0.005)]
    (forest,) = _sections(tmp_path, *arms)[1]["Differences to the control"]
    better, same = forest.traces
    assert (better["y"], better["x"], better["name"]) == (["wide"], [-0.1], "better")
    assert better["error_x"]["array"] == pytest.approx([0.02])
    assert (same["y"], same["name"]) == (["deep"], "no difference")
    assert not forest.is_over_steps


def test_one_varied_number_is_a_curve_with_a_fitted_minimum(tmp_path: Path):
    (chart,) = _sections(tmp_path, *_rates("1e-3", "2e-3", "4e-3"))[1]["Varied values"]
    (trace,) = chart.traces
    assert trace["x"] == [0.001, 0.002, 0.004] and trace["y"] == [3.0, 2.0, 2.5]
    assert chart.layout["xaxis"]["type"] == "log"
    # The parabola through (-1, 3), (0, 2), (1, 2.5) has its minimum at 1/6.
    assert f"lowest at {0.002 * 2 ** (1 / 6):.3g}" in chart.note


def test_arms_with_the_same_number_are_two_points(tmp_path: Path):
    (chart,) = _sections(tmp_path, *_rates("1e-3", "0.001"))[1]["Varied values"]
    assert chart.traces[0]["x"] == [0.001, 0.001]


def test_no_minimum_is_told_where_the_best_value_lies_at_an_end(tmp_path: Path):
    (chart,) = _sections(tmp_path, *_rates("1e-3", "2e-3"))[1]["Varied values"]
    assert "lowest" not in chart.note


def test_two_varied_values_are_curves_and_a_map(tmp_path: Path):
    arms = [
        _arm(f"{norm},{rate}", mean, None if mean == 1 else mean - 1, qk=norm, rate=rate)
        for mean, (norm, rate) in enumerate(
            [("true", "1"), ("true", "2"), ("false", "1"), ("false", "10")], start=1
        )
    ]
    curves, heat = _sections(tmp_path, *arms)[1]["Varied values"]
    assert [trace["name"] for trace in curves.traces] == ["qk true", "qk false"]
    (trace,) = heat.traces
    assert (trace["x"], trace["y"]) == (["1", "2", "10"], ["false", "true"])
    assert trace["z"] == [[3, None, 4], [1, 2, None]]


def test_arms_of_different_fields_have_no_common_axis(tmp_path: Path):
    arms = [
        _arm("plain", 3.0),
        _arm("wide", 2.9, -0.1, width="2"),
        _arm("deep", 2.8, -0.2, depth="2"),
    ]
    assert _sections(tmp_path, *arms)[1]["Varied values"] == []


def test_the_loss_is_drawn_over_what_runs_cost(tmp_path: Path):
    (chart,) = _sections(tmp_path, *_rates("1e-3", "2e-3"))[1]["Loss against cost"]
    assert [trace["x"] for trace in chart.traces] == [[1e15], [2e15]]


def test_report_knows_the_folder_of_a_sweep(tmp_path: Path):
    (tmp_path / "sweep.json").write_text(json.dumps(_document(*_rates("1e-3", "2e-3", "4e-3"))))
    (line,) = write_report([tmp_path], None)
    assert line.startswith(f"{tmp_path / 'report.html'}: ")
    text = (tmp_path / "report.html").read_text()
    assert "id=differences-to-the-control" in text and '"linked":false' in text
    with pytest.raises(InputError, match=r"--csv=.*: the table of a sweep is .*sweep\.csv"):
        write_report([tmp_path], None, tmp_path / "runs.csv")
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(InputError, match=r"sweep\.json"):
        write_report([tmp_path], None)
