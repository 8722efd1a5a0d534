import contextlib
import importlib.util
import io
import itertools
import json
import os
import re
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxpretrain.checkpoints.names import to_named
from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.config.errors import InputError
from jaxpretrain.evals.held_out import HeldOut
from jaxpretrain.optim.schedules import Constant
from jaxpretrain.storage.jsonl import read_lines
from jaxpretrain.train.experiment import Ema, Experiment, resolve
from jaxpretrain.train.loop import NonFinite
from jaxpretrain.train.program import Program, make_program
from jaxpretrain.train.run import open_run, train_experiment
from jaxpretrain.train.watchdog import Watchdog
from tests.checkpoints.conftest import data_files, truncate


@pytest.fixture(scope="module")
def six_steps(experiment: Experiment) -> Experiment:
    """At a constant learning rate, so that runs of any length share one program."""
    optim = replace(experiment.optim, schedule=Constant(peak=1e-2))
    return replace(experiment, optim=optim, train=replace(experiment.train, duration="6 steps"))


@pytest.fixture(scope="module")
def finished(six_steps: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that got to its end."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    compiled = []

    def look(program: Program, step: jax.stages.Compiled) -> list[str]:
        compiled.append((program.microbatch_size, "ENTRY" in (step.as_text() or "")))
        return ["seen"]

    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert train_experiment(resolve(six_steps), workdir, look=look)
    # The step is shown once, between its memory and the steps, with what was seen of it.
    assert [is_hlo for _, is_hlo in compiled] == [True]
    assert re.search(r"^memory .*\nstep        seen$", said.getvalue(), re.MULTILINE)
    return workdir


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """Its copy, which a test may change."""
    return shutil.copytree(finished, tmp_path / "run")


def _arrays(workdir: Path, experiment: Experiment) -> tuple[int, dict[str, np.ndarray]]:
    program = make_program(resolve(experiment), jax.devices())
    checkpoints = Checkpoints(workdir / "checkpoints")
    step = checkpoints.steps()[-1]
    state, _ = checkpoints.restore(step, program.state)
    return step, {name: np.asarray(x) for name, x in to_named(state).items()}


def _results(workdir: Path) -> list[dict[str, Any]]:
    """The lines of results, without what depends on time."""
    lines = [x for x in read_lines(workdir / "metrics.jsonl") if "run/num_devices" not in x]
    timed = ("time", "perf/")
    return [{k: v for k, v in line.items() if not k.startswith(timed)} for line in lines]


def _steps(workdir: Path, name: str) -> list[int]:
    return [line["step"] for line in _results(workdir) if name in line]


def test_a_run_leaves_its_folder_as_documented(finished: Path, six_steps: Experiment):
    assert {path.name for path in finished.iterdir()} == {
        "experiment.json",
        "metrics.jsonl",
        "signals.jsonl",
        "sessions.json",
        "checkpoints",
        ".lock",
    }
    document = json.loads((finished / "experiment.json").read_text())
    assert document["config"]["train"]["duration"] == 6
    assert _steps(finished, "train/loss") == [1, 2, 3, 4, 5, 6]
    assert _steps(finished, "eval/validation/loss") == [0, 2, 4, 6]
    assert Checkpoints(finished / "checkpoints").steps() == [4, 6]


def test_the_names_of_metrics_are_the_contract(finished: Path):
    start, first, second, *_ = read_lines(finished / "metrics.jsonl")
    assert start["step"] == 0 and start["run/num_devices"] == 8
    values = ("loss", "perplexity", "bits_per_byte")
    assert set(first) == {"step", "time", *(f"eval/validation/{name}" for name in values)}
    assert first["eval/validation/bits_per_byte"] is None  # raw files: bytes are not known
    assert {
        "train/loss",
        "train/perplexity",
        "train/learning_rate",
        "train/grad_norm",
        "train/tokens",
        "perf/tokens_per_second",
        "perf/eta_seconds",
    } <= set(second)
    assert second["train/tokens"] == 256
    assert second["train/perplexity"] == pytest.approx(np.exp(second["train/loss"]))
    assert second["time/compile_seconds"] > 0


def test_it_learns(finished: Path):
    lines = _results(finished)
    assert lines[-1]["eval/validation/loss"] < lines[0]["eval/validation/loss"] - 0.05


def test_a_finished_run_stays_as_it_is(run: Path, six_steps: Experiment, capsys):
    before = (run / "metrics.jsonl").read_bytes()
    assert train_experiment(resolve(six_steps), run)
    assert "nothing left to do: 6 of 6 steps" in capsys.readouterr().err
    assert (run / "metrics.jsonl").read_bytes() == before
    assert Checkpoints(run / "checkpoints").steps() == [4, 6]


def test_a_run_goes_on_with_fewer_devices_and_with_more(
    six_steps: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The batch and the order of the data stay, and so do the losses but for the order of sums."""
    devices = jax.devices()

    def go_on(name: str, num_devices: int, duration: str) -> list[dict[str, Any]]:
        monkeypatch.setattr(jax, "devices", lambda *_: devices[:num_devices])
        train = replace(six_steps.train, duration=duration, batch_size=24)
        assert train_experiment(resolve(replace(six_steps, train=train)), tmp_path / name)
        return [line for line in _results(tmp_path / name) if "train/loss" in line]

    whole = go_on("whole", 8, "6 steps")
    go_on("elastic", 8, "2 steps")
    go_on("elastic", 6, "4 steps")
    elastic = go_on("elastic", 8, "6 steps")
    starts = [x for x in read_lines(tmp_path / "elastic/metrics.jsonl") if "run/num_devices" in x]
    assert [line["run/num_devices"] for line in starts] == [8, 6, 8]
    assert [line["step"] for line in elastic] == [1, 2, 3, 4, 5, 6]
    assert [line["train/tokens"] for line in elastic] == [line["train/tokens"] for line in whole]
    for name in ("train/loss", "train/grad_norm"):
        np.testing.assert_allclose(
            [line[name] for line in elastic], [line[name] for line in whole], rtol=1e-5
        )


def test_no_start_deletes_what_the_last_session_kept_unless_it_says_so(
    run: Path, six_steps: Experiment, capsys: pytest.CaptureFixture[str]
):
    """Of the three sessions that go on, the second says how many are to be kept."""

    def lasting(num_steps: int, **kept: Any) -> Experiment:
        train = replace(six_steps.train, duration=num_steps)
        return replace(
            six_steps, train=train, checkpoint=replace(six_steps.checkpoint, every=1, **kept)
        )

    steps = Checkpoints(run / "checkpoints").steps
    assert train_experiment(
        resolve(lasting(8, keep_last=None)), run, given=["checkpoint.keep_last"]
    )
    assert steps() == [4, 6, 7, 8]
    capsys.readouterr()
    assert train_experiment(resolve(lasting(10, keep_last=1)), run)
    assert "checkpoint.keep_last is None, as in the last session, and not 1" in (
        capsys.readouterr().err
    )
    assert steps() == [4, 6, 7, 8, 9, 10]
    assert train_experiment(resolve(lasting(12, keep_last=1)), run, given=["checkpoint.keep_last"])
    assert steps() == [12]


def test_what_an_interrupted_save_left_goes_at_the_next_start(run: Path, six_steps: Experiment):
    shutil.copytree(run / "checkpoints" / "4", run / "checkpoints" / "5.orbax-checkpoint-tmp")
    assert train_experiment(resolve(six_steps), run)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"4", "6"}


@pytest.mark.parametrize("number", [1, 4, 8])
def test_asked_to_stop_in_an_evaluation_it_saves_and_evaluates_when_it_goes_on(
    finished: Path,
    six_steps: Experiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
):
    """The signal comes with one of the batches of the evaluations, of which each has two."""
    read, batches = HeldOut._read, itertools.count(1)

    def read_and_stop(*args: Any) -> Any:
        if next(batches) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(*args)

    with monkeypatch.context() as signalled:
        signalled.setattr(HeldOut, "_read", read_and_stop)
        assert not train_experiment(resolve(six_steps), tmp_path / "run")
    step = {1: 0, 4: 2, 8: 6}[number]
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps()[-1] == step
    assert step not in _steps(tmp_path / "run", "eval/validation/loss")
    assert train_experiment(resolve(six_steps), tmp_path / "run")
    assert _results(tmp_path / "run") == _results(finished)
    assert train_experiment(resolve(six_steps), tmp_path / "run")  # and not once more
    assert _results(tmp_path / "run") == _results(finished)


def test_a_longer_run_goes_on(run: Path, six_steps: Experiment, capsys):
    longer = replace(six_steps, train=replace(six_steps.train, duration="9 steps"))
    assert train_experiment(resolve(longer), run)
    error = capsys.readouterr().err
    assert "going on after step 6" in error and "train.duration was 6, is 9" in error
    assert _steps(run, "train/loss") == list(range(1, 10))
    assert _steps(run, "eval/validation/loss") == [0, 2, 4, 6, 8, 9]
    lines = [line for line in read_lines(run / "metrics.jsonl") if "train/loss" in line]
    seconds = [line["time/train_seconds"] for line in lines]
    assert seconds == sorted(seconds)  # of all sessions together


def test_after_a_damaged_checkpoint_the_same_results_come_again(run: Path, six_steps: Experiment):
    step, expected = _arrays(run, six_steps)
    results = _results(run)
    files = [path for path in (run / "checkpoints" / "6").rglob("d/*") if path.is_file()]
    for file in files:
        file.write_bytes(file.read_bytes()[:-10])
    assert train_experiment(resolve(six_steps), run)
    assert (run / "corrupt" / "6").is_dir()
    found_step, found = _arrays(run, six_steps)
    assert found_step == step == 6
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert _results(run) == results


@pytest.mark.parametrize("gone", ["checkpoints", "checkpoints/4 and checkpoints/6"])
def test_a_run_whose_checkpoints_are_gone_is_left_alone(
    run: Path, six_steps: Experiment, gone: str
):
    for name in gone.split(" and "):
        shutil.rmtree(run / name)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    for start in (train_experiment, open_run):
        with pytest.raises(InputError, match="got to step 6, and .*checkpoints has no checkpoint"):
            start(resolve(six_steps), run, allow_config_change=False)
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert after == before


def test_sessions_are_written_down(run: Path, six_steps: Experiment):
    longer = replace(six_steps, train=replace(six_steps.train, duration="7 steps"))
    for _ in range(2):  # the second has nothing left to do
        assert train_experiment(resolve(longer), run)
    document = json.loads((run / "experiment.json").read_text())
    assert [session["first_step"] for session in document["sessions"]] == [0, 6]
    assert document["last_saved"] == 7 and "6,000 tokens" in document["data_description"]


def test_a_run_that_diverges_says_so_and_saves_nothing_of_it(six_steps: Experiment, tmp_path: Path):
    optim = replace(six_steps.optim, schedule=Constant(peak=1000.0), weight_decay=1000.0)
    checkpoint = replace(six_steps.checkpoint, every="1 steps")
    with pytest.raises(NonFinite, match="grad_norm is nan at step 4"):
        train_experiment(resolve(replace(six_steps, optim=optim, checkpoint=checkpoint)), tmp_path)
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert (lines[-1]["step"], lines[-1]["train/grad_norm"]) == (4, None)
    assert any(line.get("train/perplexity", 0) is None for line in lines)  # no float holds it
    assert Checkpoints(tmp_path / "checkpoints").steps() == [2, 3]


def test_each_part_of_the_compilation_is_progress(six_steps: Experiment, tmp_path: Path):
    """The step, the state and the evaluations, each of which may take minutes."""
    phases: list[str] = []

    class Dog(Watchdog):
        def beat(self) -> None:
            super().beat()
            phases.append(self._mark.phase)

    one_step = replace(six_steps, train=replace(six_steps.train, duration="1 steps"))
    assert train_experiment(resolve(one_step), tmp_path / "run", watchdog=Dog(tmp_path))
    assert phases.count("compile") == 2


def test_another_run_is_refused_before_anything_happens(run: Path, six_steps: Experiment):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(InputError, match="seed: 6198 there, 1 here"):
        train_experiment(resolve(replace(six_steps, seed=1)), run)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_other_tokens_under_the_same_config_are_refused(
    run: Path, six_steps: Experiment, tokens: Path, tmp_path: Path
):
    root = shutil.copytree(tokens, tmp_path / "tokens")
    elsewhere = replace(six_steps, data=replace(six_steps.data, root=str(root)))
    assert train_experiment(resolve(elsewhere), run)  # the same files at another place
    with (root / "train" / "part.npy").open("ab") as file:
        file.write(b"\0\0" * 16)
    with pytest.raises(InputError, match="the data is not that of this run"):
        train_experiment(resolve(elsewhere), run)
    assert train_experiment(resolve(elsewhere), run, allow_config_change=True)


def test_checkpoints_of_another_model_are_refused_and_kept(run: Path, six_steps: Experiment):
    other = replace(six_steps, model=replace(six_steps.model, d_ff=128))
    with pytest.raises(InputError, match="is another model's"):
        train_experiment(resolve(other), run, allow_config_change=True)
    assert Checkpoints(run / "checkpoints").steps() == [4, 6]
    assert not (run / "corrupt").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"root": "/nowhere"}},
        {"data": {"root": None}},
        {"data": {"num_examples": 7}},
        {"train": {"batch_size": 12}},
        {"mesh": {"fsdp": 3}},
        {"model": {"num_heads": 5}},
    ],
)
def test_bad_input_leaves_no_files(six_steps: Experiment, tmp_path: Path, changes):
    for name, values in changes.items():
        part = replace(getattr(six_steps, name), **values)
        six_steps = replace(six_steps, **{name: part})
    with pytest.raises(InputError):
        train_experiment(resolve(six_steps), tmp_path / "run")
    assert not list(tmp_path.rglob("*.*")) and not list(tmp_path.rglob("checkpoints"))


def _with_tracker(experiment: Experiment) -> Experiment:
    return replace(experiment, monitor=replace(experiment.monitor, trackers=("wandb",)))


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_tracker_without_its_package_leaves_no_files(six_steps: Experiment, tmp_path: Path):
    with pytest.raises(InputError, match="monitor.trackers=wandb: the package wandb is missing"):
        train_experiment(resolve(_with_tracker(six_steps)), tmp_path / "run")
    assert not list(tmp_path.rglob("*.*"))


def test_a_tracker_stands_beside_the_run(
    run: Path, six_steps: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("jaxpretrain.train.run.require_packages", lambda names, flag: None)
    program, words = tmp_path / "program", tmp_path / "words"
    # It takes the place of the tracker's process, and notes what the run says and where.
    script = "import sys\nprint('ready', flush=True)\nfile = open({!r}, 'w')\n"
    script += "file.write(' '.join(sys.argv[1:] + sys.stdin.read().split()))\n"
    program.write_text(f"#!{sys.executable}\n" + script.format(str(words)))
    program.chmod(0o755)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", str(program))
        assert train_experiment(resolve(_with_tracker(six_steps)), run)
    command = f"-m jaxpretrain.track.follow {run} wandb"
    assert words.read_text() == f"{command} begin report"


def test_the_average_of_the_weights_is_evaluated_when_asked_for(
    six_steps: Experiment, tmp_path: Path
):
    """At step 0 it is the weights themselves; after that it lags behind them."""
    losses = {}
    for weights in ("current", "average"):
        train = replace(six_steps.train, ema=Ema(0.5, evaluate=weights == "average"))
        train_experiment(resolve(replace(six_steps, train=train)), tmp_path / weights)
        lines = read_lines(tmp_path / weights / "metrics.jsonl")
        losses[weights] = [x["eval/validation/loss"] for x in lines if "eval/validation/loss" in x]
    assert losses["current"][0] == losses["average"][0]
    assert all(b > a for a, b in zip(losses["current"][1:], losses["average"][1:], strict=True))


def _skipping(experiment: Experiment, *ranges: str) -> Experiment:
    return replace(experiment, data=replace(experiment.data, skip=ranges))


def test_a_run_goes_back_before_bad_samples_and_leaves_them_out(
    run: Path, six_steps: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """It ends as one that has never seen them, and what came of them is kept."""
    skipping = _skipping(six_steps, "64-79")  # of step 5
    with pytest.raises(InputError, match="data.skip=64-79 until step 6, was none: the run has"):
        train_experiment(resolve(skipping), run)
    assert train_experiment(resolve(skipping), run, rewind_to=4)
    error = capsys.readouterr().err
    assert "went back to step 4: the checkpoints of step 6 are in" in error
    assert "changed since the last start: data.skip" in error
    assert train_experiment(resolve(skipping), tmp_path / "fresh")
    assert _results(run) == _results(tmp_path / "fresh") and _results(run)[-1]["step"] == 6
    (step, found), (_, expected) = (_arrays(x, six_steps) for x in (run, tmp_path / "fresh"))
    assert step == 6
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert (run / "abandoned" / "1" / "6").is_dir()
    lines = read_lines(run / "abandoned" / "1" / "metrics.jsonl")
    assert {line["step"] for line in lines} == {5, 6}
    with pytest.raises(InputError, match="data.skip=none until step 6, was 64-79"):
        train_experiment(resolve(six_steps), run)
    later = _skipping(six_steps, "64-79", "500-600")
    capsys.readouterr()
    assert train_experiment(resolve(later), run)
    unreached = "data.skip=500-600 leaves nothing out: the run ends before that, with sample 111"
    assert unreached in " ".join(capsys.readouterr().err.split())


def test_a_refused_way_back_moves_nothing(run: Path, six_steps: Experiment):
    """Neither where the settings do not fit the older step, nor where that one is damaged."""

    def contents() -> dict[str, bytes]:
        kept = [path for path in run.rglob("*") if path.is_file() and path.name != ".lock"]
        return {str(path.relative_to(run)): path.read_bytes() for path in kept}

    before = contents()
    with pytest.raises(InputError, match="data.skip=16-31 until step 4, was none: the run has"):
        train_experiment(resolve(_skipping(six_steps, "16-31")), run, rewind_to=4)
    with pytest.raises(InputError, match="--rewind_to=5: .*; the nearest is 4; it has 4, 6"):
        train_experiment(resolve(six_steps), run, rewind_to=5)
    assert contents() == before
    document = run / "checkpoints" / "4" / "meta" / "metadata"
    for damaged in (data_files(run / "checkpoints", 4), [document]):
        for path in damaged:
            truncate(path)
        before = contents()
        with pytest.raises(
            InputError, match=r"--rewind_to=4: .* damaged \(.*the others are of step"
        ):
            train_experiment(resolve(six_steps), run, rewind_to=4)
        assert contents() == before
