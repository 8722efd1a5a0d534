import json
import re
from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.report import main
from tests.reports.conftest import figures, make_run


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


def test_a_run_without_a_config_can_be_reported(tmp_path):
    run = make_run(tmp_path / "run", "bad_batch")
    (run / "experiment.json").unlink()
    assert "In trouble" in report(run)


def test_a_folder_without_metrics_is_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match="no run has written"):
        main([f"--workdir={tmp_path}"])


def test_several_runs_are_one_file(tmp_path):
    runs = [make_run(tmp_path / n, f"healthy_{n}") for n in ("triangular", "cosine")]
    html = report(*runs, output=tmp_path / "both.html")
    assert "<h1>triangular, cosine</h1>" in html and "optim.schedule.class" in html


def test_a_folder_of_runs_is_reported_with_a_table_as_csv(tmp_path, capsys):
    for name in ("triangular", "cosine"):
        make_run(tmp_path / "runs" / name, f"healthy_{name}")
    (tmp_path / "runs" / "notes.txt").write_text("no run")
    (tmp_path / "runs" / "empty").mkdir()
    paths = sorted(map(str, (tmp_path / "runs").iterdir()))
    main([str(tmp_path / "runs"), *paths, f"--csv={tmp_path / 'runs.csv'}"])
    assert "<h1>cosine, triangular</h1>" in (tmp_path / "runs" / "report.html").read_text()
    rows = (tmp_path / "runs.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows] == ["run", "cosine", "triangular"]
    said = capsys.readouterr().out
    assert f"{tmp_path / 'runs' / 'empty'}: holds no run, left out" in said


def test_without_a_folder_it_says_what_to_give():
    with pytest.raises(InputError, match="give the folder of a run"):
        main([])
