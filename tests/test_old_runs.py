"""Folders that an earlier version wrote are still evaluated, sampled, reported and gone on with.

`golden/run_c1d242c.tar.xz` holds three runs of 12 steps, their data, and the `config.py` that
describes them, all as the version of commit c1d242c wrote and read them: an OLMo 2 on raw token
files, an OLMo 1 on a mixture that continues prompts, and a Sapiens. Each was made, in the folder of
its data and with the environment of these tests, by

    python -m jaxpretrain.main --config=config.py:NAME --workdir=NAME

Left out are only files of Orbax that its merged checkpoints do not refer to. What c1d242c
itself made of copies of these folders is in `golden/run_c1d242c.json`: under `own` the output of
`evaluate`, under `went_on` the metrics of steps 13 to 18 with `--config.train.duration='18 steps'`.
Its configs set many fields that have other names now; the file is never made anew.
"""

import json
import tarfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from jaxpretrain import evaluate, report, sample
from jaxpretrain.storage.jsonl import read_lines
from jaxpretrain.train.run import train_experiment
from jaxpretrain.train.workdir import read_experiment

pytest.importorskip("PIL")
pytest.importorskip("plotly")

GOLDEN = Path(__file__).parent / "golden"
RUNS = ("text", "mixture", "images")
RECORDED = json.loads((GOLDEN / "run_c1d242c.json").read_text())
SETS = {"eval/held_out/": "eval/validation/", "eval/waves/": "eval/pictures/"}
"""Evaluation sets whose names were chosen in the configs (`data.name`), and the names that their
split and folder give them now."""
EXACT_TO = 2e-6
"""Relative error. On the processor that recorded them, results are the same to the bit but for the
triangular learning rate, which has been rounded elsewhere since; other processors order the sums of
a matrix product in other ways."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The unpacked runs; the working directory, since their configs name their data from there."""
    with tarfile.open(GOLDEN / "run_c1d242c.tar.xz") as archive:
        # Python has filters from 3.11.4 on, and warns without one from 3.12 on.
        known = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(tmp_path, **known)
    monkeypatch.chdir(tmp_path / "run_c1d242c")
    return tmp_path / "run_c1d242c"


def named(metric: str) -> str:
    """Returns the name that a metric has now."""
    return next((metric.replace(old, new) for old, new in SETS.items() if old in metric), metric)


def close(expected: dict[str, Any]) -> Any:
    """Compares results; those that are no numbers must be equal."""
    approx = partial(pytest.approx, rel=EXACT_TO, abs=1e-9)
    return {
        named(name): approx(value) if isinstance(value, float) else value
        for name, value in expected.items()
    }


@pytest.mark.parametrize("name", RUNS)
def test_an_old_run_is_evaluated_as_it_was(folder, capsys, name):
    flags = ["--weights=plain"] if name == "text" else []  # c1d242c knew no others here
    assert evaluate.main([f"--checkpoint={name}", "--json", *flags]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["step"] == 12
    assert document["own"] == close(RECORDED[name]["own"])


def test_an_average_of_old_weights_is_what_the_run_evaluated(folder, capsys):
    evaluate.main(["--checkpoint=text", "--json"])
    line = read_lines(Path("text/metrics.jsonl"))[-1]
    assert line["step"] == 12
    own = json.loads(capsys.readouterr().out)["own"]
    assert own == close({name: line[name] for name in line if named(name) in own})


def test_an_old_run_continues_prompts_as_it_did(folder, capsys):
    texts = ["--prompt=The old ", "--prompt=the and", "--num_tokens=12"]
    sample.main(["--checkpoint=mixture", *texts, "--temperature=0.5", "--seed=3", "--json"])
    samples = json.loads(capsys.readouterr().out)["samples"]
    continuations = [one["continuation"] for one in samples]
    assert continuations == ["san  anan    ans", "   ,   d neanan"]


@pytest.mark.parametrize(
    ("name", "loss", "finding"),
    [
        ("text", "2.989", "repeated data"),
        ("mixture", "3.828", "nothing stands out"),
        ("images", "0.807", "evaluation within noise"),
    ],
)
def test_an_old_run_is_reported(folder, capsys, name, loss, finding):
    report.main([f"--workdir={name}"])
    assert capsys.readouterr().out.startswith(f"{name}: {finding}\n")
    html = Path(name, "report.html").read_text()
    for shown in (loss, "Step 12 of 12", "config.optim.class"):
        assert shown in html


@pytest.mark.parametrize("name", RUNS)
def test_an_old_run_goes_on_as_it_did(folder, name):
    experiment = read_experiment(Path(name))
    assert experiment.train.duration == 12
    longer = replace(experiment, train=replace(experiment.train, duration=18))
    assert train_experiment(longer, Path(name))
    lines = [line for line in read_lines(Path(name, "metrics.jsonl")) if line["step"] > 12]
    for expected in RECORDED[name]["went_on"]:
        wanted = close(expected)
        found = next(
            line
            for line in lines
            if line["step"] == wanted["step"] and line.keys() >= wanted.keys()
        )
        assert {key: found[key] for key in wanted} == wanted
