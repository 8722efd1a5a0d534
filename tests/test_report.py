"""The report, and in a browser where there is one: it needs Playwright and Chromium."""

import gzip
import json
import re
import shutil
from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.report import main

pytest.importorskip("plotly")

HISTORIES = Path(__file__).parent / "golden" / "histories"
EVIL = "<img src=x onerror=alert(1)><b>run"


def make_run(folder: Path, scenario: str, *, torn: bool = False) -> Path:
    """Lays out a recorded history as the folder of a run."""
    document = json.loads(gzip.decompress((HISTORIES / f"{scenario}.json.gz").read_bytes()))
    lines: dict[tuple[float, int], dict[str, object]] = {}
    for name, columns in document["series"].items():
        for step, time, value in zip(*columns, strict=True):
            lines.setdefault((time, step), {"step": step, "time": 1.7e9 + time})[name] = value
    folder.mkdir(parents=True)
    text = "".join(json.dumps(lines[key]) + "\n" for key in sorted(lines))
    (folder / "metrics.jsonl").write_text(text + ('{"step": 99' if torn else ""))
    (folder / "experiment.json").write_text(json.dumps({"config": document["config"]}))
    texts = {"step": 100, "time": 1.7e9, "samples/0": "</script><script>alert(2)</script>|text"}
    (folder / "samples.jsonl").write_text(json.dumps(texts) + "\n")
    return folder


def figures(html: str) -> dict:
    """The data of the charts."""
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', html, re.S)
    assert found is not None
    return json.loads(found[1])


def report(*workdirs: Path, **flags: Path) -> str:
    """The HTML of a report."""
    main([f"--workdir={folder}" for folder in workdirs] + [f"--{k}={v}" for k, v in flags.items()])
    return (flags.get("output") or workdirs[0] / "report.html").read_text()


def test_one_file_with_everything_and_nothing_to_fetch(tmp_path, capsys):
    html = report(make_run(tmp_path / "run", "clipping", torn=True))
    assert capsys.readouterr().out.startswith("run: always clipping\n")
    assert {"loss", "grad_norm", "clipped", "update_ratio", "hours"} <= figures(html).keys()
    for text in ("Needs a look", "Always clipping", "optim.clip_norm", "device-hours", "peak"):
        assert text in html
    assert not re.search(r'<(script|link|img)[^>]+(src|href)="?http', html)
    assert "default-src 'none'" in html
    assert len(html) < 6e6


def test_a_finished_run_without_its_losses_is_reported(tmp_path):
    run = make_run(tmp_path / "run", "clipping")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    total = json.loads((run / "experiment.json").read_text())["config"]["train"]["duration"]
    # Half of the losses are left, and the last line is that of the last step.
    kept = [line for line in lines if line["step"] <= total // 2]
    kept.append({"step": total, "time": lines[-1]["time"], "train/tokens": 1})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    assert "nan" not in report(run).split("<script")[0].lower()


def test_what_files_contain_is_text(tmp_path):
    html = report(make_run(tmp_path / EVIL, "healthy_cosine"))
    assert "<img src=x" not in html and "<script>alert" not in html
    assert "&lt;img src=x onerror=alert(1)&gt;&lt;b&gt;run" in html


def test_layers_are_maps_with_all_their_steps(tmp_path):
    html = report(make_run(tmp_path / "run", "attention_logits_growing"))
    shown = {key: figure for key, figure in figures(html).items() if key.startswith("layers_")}
    assert len(shown) == 5
    for figure in shown.values():
        (trace,) = figure["traces"]
        assert len(trace["z"]) == len(trace["customdata"]) == 2  # layers
        assert trace["x"] == list(range(10, 401, 10))
        assert len(trace["colorbar"]["tickvals"]) > 1
    assert "Largest attention logit by layer" in html
    assert 'data-plot="layers_3"' in html  # the finding leads there


def test_runs_compare(tmp_path):
    runs = [make_run(tmp_path / n, f"healthy_{n}") for n in ("triangular", "cosine")]
    html = report(*runs, output=tmp_path / "both.html")
    names = {trace["name"] for trace in figures(html)["loss"]["traces"]}
    assert {"triangular training, smoothed", "cosine training, smoothed"} <= names
    assert "optim.schedule.class" in html and "warmup_cosine" in html


def test_a_run_without_a_config_can_be_reported(tmp_path):
    run = make_run(tmp_path / "run", "bad_batch")
    (run / "experiment.json").unlink()
    assert "In trouble" in report(run)


def test_a_folder_without_metrics_is_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match="no run has written"):
        main([f"--workdir={tmp_path}"])


@pytest.fixture
def open_page():
    """(file, width, scheme) -> (page, its console errors), in a headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=chromium, args=["--no-sandbox"])

        def opened(path: Path, width: int, scheme: str):
            context = browser.new_context(
                viewport={"width": width, "height": 800}, color_scheme=scheme
            )
            page, errors = context.new_page(), []
            page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("dialog", lambda dialog: errors.append(f"dialog {dialog.message}"))
            page.goto(path.as_uri())
            page.locator("#plot-loss").scroll_into_view_if_needed()
            page.wait_for_selector("#plot-loss .main-svg")
            return page, errors

        yield opened
        browser.close()


def test_maps_of_layers_are_drawn_in_a_browser(tmp_path, open_page):
    run = make_run(tmp_path / "run", "attention_logits_growing")
    report(run)
    page, errors = open_page(run / "report.html", 390, "dark")
    page.locator('.finding a[data-plot="layers_3"]').first.click()
    wait_until(page, "document.querySelectorAll('#plot-layers_3 .heatmaplayer image').length == 1")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not errors


def wait_until(page, condition: str) -> None:
    """Playwright's own waiting evaluates text in the page, which the page's policy forbids."""
    for _ in range(100):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    pytest.fail(f"never: {condition}")


@pytest.mark.parametrize(("width", "scheme"), [(1366, "light"), (390, "dark")])
def test_the_page_works_in_a_browser(tmp_path, open_page, width, scheme):
    report(make_run(tmp_path / EVIL, "clipping"), output=tmp_path / "report.html")
    page, errors = open_page(tmp_path / "report.html", width, scheme)
    assert page.locator("h1").inner_text() == EVIL
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#plot-loss .scatterlayer .trace").count() >= 3
    page.locator(".finding a").first.click()
    wait_until(page, "document.querySelector('#plot-grad_norm').layout?.xaxis.range[0] > 100")
    page.locator('button[data-plot="loss"][data-axis="xaxis"]').click()
    wait_until(page, "document.querySelector('#plot-loss').layout.xaxis.type == 'log'")
    assert not errors
