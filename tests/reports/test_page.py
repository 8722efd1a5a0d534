"""The page, and in a browser where there is one: that needs Playwright and Chromium."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxpretrain.monitor.writers import write_pictures
from jaxpretrain.reports import page as page_module
from tests.reports.conftest import make_run, page_of

EVIL = "<img src=x onerror=alert(1)><b>run"


def test_what_files_contain_is_text(tmp_path):
    html = page_of([make_run(tmp_path / EVIL, "healthy_cosine")])
    assert "<img src=x" not in html and "<script>alert" not in html
    assert "&lt;img src=x onerror=alert(1)&gt;&lt;b&gt;run" in html


def test_the_latest_picture_is_shown_beside_the_first(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", "healthy_cosine")
    assert ">Pictures</h2>" not in page_of([run])
    for step in (0, 10, 20):
        write_pictures(run, step, {"faces": np.zeros((2, 2, 3), np.uint8)})
    html = page_of([run])
    assert html.count("<figure>") == 2
    assert "faces, step 20" in html and "faces, step 0" in html
    monkeypatch.setattr(page_module, "MOST_PICTURES", 1)
    assert page_of([run]).count("<figure>") == 1


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
    (tmp_path / "report.html").write_text(page_of([run]))
    page, errors = open_page(tmp_path / "report.html", 390, "dark")
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
    (tmp_path / "report.html").write_text(page_of([make_run(tmp_path / EVIL, "clipping")]))
    page, errors = open_page(tmp_path / "report.html", width, scheme)
    assert page.locator("h1").inner_text() == EVIL
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#plot-loss .scatterlayer .trace").count() >= 3
    page.locator(".finding a").first.click()
    wait_until(page, "document.querySelector('#plot-grad_norm').layout?.xaxis.range[0] > 100")
    page.locator('button[data-plot="loss"][data-axis="xaxis"]').click()
    wait_until(page, "document.querySelector('#plot-loss').layout.xaxis.type == 'log'")
    assert not errors


def test_the_table_of_runs_sorts_and_its_links_open_the_runs(tmp_path, open_page):
    runs = [make_run(tmp_path / n, f"healthy_{n}") for n in ("triangular", "cosine", "stable")]
    (tmp_path / "report.html").write_text(page_of(runs))
    page, errors = open_page(tmp_path / "report.html", 1366, "light")
    loss = page.locator(".sortable thead button", has_text="training loss")
    for order in ("ascending", "descending"):
        loss.click()
        assert page.locator(f'.sortable th[aria-sort="{order}"] button').count() == 1
        column = page.evaluate(
            "[...document.querySelectorAll('.sortable tbody tr')].map((row) => Number("
            "row.cells[document.querySelector('[aria-sort]').cellIndex].dataset.value))"
        )
        assert column == sorted(column, reverse=order == "descending") and len(set(column)) == 3
    page.locator('a[href="#run-1"]').click()
    wait_until(page, "document.querySelector('#run-1').open")
    assert not errors


def test_a_page_lists_its_sections_and_none_is_empty(tmp_path):
    html = page_of([make_run(tmp_path / "run", "attention_logits_growing")])
    links = re.findall(r'<a href="#([a-z-]+)">[A-Z]', html)
    assert links[:3] == ["curves", "findings", "time"]
    assert links == re.findall(r"<section id=([a-z-]+)", html)
    assert "plan" not in links and links.index("findings") < links.index("layers")
