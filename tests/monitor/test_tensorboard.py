import importlib.util
import json
import os
import subprocess
import sys
import threading

import pytest

from jaxpretrain.monitor.tensorboard import TensorBoard, drop_events_after


class Recorder:
    """Stands in for a CLU metric writer."""

    def __init__(self, calls):
        self._calls = calls

    def write_scalars(self, step, scalars):
        if "disk full" in scalars:
            raise OSError("No space left\non device")
        self._calls.append((step, scalars))

    def close(self):
        self._calls.append("closed")


def test_what_is_written_during_the_import_is_kept_in_order(tmp_path):
    imported, calls, messages = threading.Event(), [], []

    def slow_import(logdir):
        imported.wait()
        return Recorder(calls)

    board = TensorBoard(tmp_path, messages.append, slow_import)
    for step in range(100):
        board.call("write_scalars", step, {"loss": 1.0})
    assert calls == []
    imported.set()
    board.close()
    assert calls == [(step, {"loss": 1.0}) for step in range(100)] + ["closed"]
    assert messages == []


def test_a_close_that_takes_long_says_so_and_completes(tmp_path):
    imported, calls, messages = threading.Event(), [], []

    def slow_import(logdir):
        imported.wait()
        return Recorder(calls)

    def message(text):
        messages.append(text)
        imported.set()

    board = TensorBoard(tmp_path, message, slow_import)
    board.call("write_scalars", 1, {})
    board.close(patience=0.01)
    assert calls == [(1, {}), "closed"]
    assert len(messages) == 1 and "waiting" in messages[0]


def test_a_close_that_hangs_is_given_up(tmp_path):
    hang, messages = threading.Event(), []
    board = TensorBoard(tmp_path, messages.append, lambda logdir: hang.wait())
    board.call("flush")
    board.close(patience=0.01, timeout=0.02)
    hang.set()
    assert "incomplete" in messages[1]


def test_without_anything_to_write_nothing_is_imported(tmp_path):
    made = []
    board = TensorBoard(tmp_path, made.append, made.append)
    board.close()
    assert made == []


@pytest.mark.parametrize("missing", ["tensorflow", "clu"])
def test_a_missing_package_is_one_warning(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setitem(sys.modules, missing, None)
    messages = []
    board = TensorBoard(tmp_path, messages.append)
    for step in range(100):
        board.call("write_scalars", step, {"loss": 1.0})
    board.close()
    board.call("flush")
    assert len(messages) == 1
    assert messages[0].startswith("warning: no TensorBoard event files: ")
    assert not list(tmp_path.iterdir())


def test_an_error_while_writing_is_one_warning_of_one_line(tmp_path):
    calls, messages = [], []
    board = TensorBoard(tmp_path, messages.append, lambda logdir: Recorder(calls))
    board.call("write_scalars", 1, {"loss": 1.0})
    board.call("write_scalars", 2, {"disk full": 1.0})
    board.call("write_scalars", 3, {"loss": 1.0})
    board.close()
    assert calls == [(1, {"loss": 1.0})]
    assert messages == [
        "warning: TensorBoard event files end here: OSError: No space left on device"
    ]


WRITE_AND_READ = """
import json, math, sys
from pathlib import Path
import numpy as np
from jaxpretrain.monitor.writers import open_writers

assert not {"clu", "tensorflow"} & set(sys.modules)
workdir = Path(sys.argv[1])
with open_writers(workdir, sys.stderr.write, resume_step=None, tensorboard=True) as writers:
    writers.hparams({"seed": 1, "optim": {"peak": 3e-4, "betas": (0.9, 0.95), "path": workdir}})
    for step in range(3):
        loss = math.nan if step == 1 else np.float32(step)
        writers.scalars(step, {"train/loss": loss, "x": None})
    strange = [10**400, 1e300, -1e300, math.inf, True, np.bool_(False), np.float64(1e304), 2**70]
    writers.scalars(2, {f"strange/{i}": x for i, x in enumerate(strange)} | {"strange/none": None})
    writers.signals(1, {"signals/wide/blocks": np.array([-1e300, 3e38, -3e38, math.inf])})
    writers.signals(2, {"signals/norm/blocks": np.array([1.0, math.nan, 3.0]),
                        "signals/norm/head": np.array(2.0)})
    writers.texts(2, {"sample": "hello"})
    writers.images(2, {"mask": np.full((4, 4, 3), 128, np.uint8)})

from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.util import tensor_util
events = event_accumulator.EventAccumulator(str(workdir))
events.Reload()
print(json.dumps({
    "loss": [[event.step, float(tensor_util.make_ndarray(event.tensor_proto))]
             for event in events.Tensors("train/loss")],
    "tags": sorted(events.Tags()["tensors"]),
    "hparams": sorted(metadata.parse_session_start_info_plugin_data(
        events.PluginTagToContent("hparams")[metadata.SESSION_START_INFO_TAG]).hparams),
}))
"""


WRITE_AGAIN_AND_READ = """
import json, sys
from pathlib import Path
import numpy as np
from jaxpretrain.monitor.writers import open_writers

workdir = Path(sys.argv[1])
sessions = [(None, range(5)), (2, range(3, 7)), (4, range(5, 6)), (5, range(6, 9))]
if sys.argv[2] == "anew":
    sessions.append((None, range(2)))
for number, (resume_step, steps) in enumerate(sessions):
    where = {"resume_step": resume_step, "tensorboard": True}
    with open_writers(workdir, sys.stderr.write, **where) as writers:
        for step in steps:
            writers.scalars(step, {"train/loss": np.float32(number)})
            writers.texts(step, {"sample": str(number)})
            writers.signals(step, {"signals/norm/blocks": np.ones(2)})

from tensorboard.backend.event_processing import event_accumulator
events = event_accumulator.EventAccumulator(str(workdir), size_guidance={"tensors": 0})
events.Reload()
lines = (workdir / "metrics.jsonl").read_text().splitlines()
print(json.dumps({
    "metrics": [json.loads(line)["step"] for line in lines],
    **{tag: [event.step for event in events.Tensors(tag)] for tag in events.Tags()["tensors"]},
}))
"""

needs_tensorflow = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("clu", "tensorboard", "tensorflow"))),
    reason="needs clu, tensorflow and tensorboard",
)


@needs_tensorflow
@pytest.mark.parametrize(("case", "num_steps"), [("resumed", 9), ("anew", 2)])
def test_tensorboard_shows_each_step_once_after_going_back(tmp_path, case, num_steps):
    """As `metrics.jsonl` does; also after a start that begins anew."""
    result = subprocess.run(
        [sys.executable, "-c", WRITE_AGAIN_AND_READ, str(tmp_path), case],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    read = json.loads(result.stdout)
    assert read.keys() == {"metrics", "train/loss", "sample", "norm/blocks"}
    assert all(steps == list(range(num_steps)) for steps in read.values())


@needs_tensorflow
def test_events_above_a_step_are_cut_away_and_the_rest_stays_as_it_was(tmp_path):
    """Also from a file whose last record is torn, and for steps of several bytes."""
    import tensorflow as tf

    events = [tf.compat.v1.Event(wall_time=1.5, file_version="brain.Event:2")]
    events += [tf.compat.v1.Event(wall_time=2.5, step=step) for step in (1, 300, 127, 2**31, 300)]
    names = [str(tmp_path / f"events.out.tfevents.{n}") for n in ("1", "2")]
    for name in names:
        with tf.io.TFRecordWriter(name) as file:
            for event in events:
                file.write(event.SerializeToString())
    with open(names[1], "ab") as file:
        file.write(b"\x40\0\0\0\0\0\0\0torn")

    def steps(name):
        return [event.step for event in tf.compat.v1.train.summary_iterator(name)]

    drop_events_after(tmp_path, 2**31)
    assert steps(names[0]) == [0, 1, 300, 127, 2**31, 300]
    drop_events_after(tmp_path, 299)
    assert [steps(name) for name in names] == [[0, 1, 127]] * 2
    before = [os.stat(name).st_mtime_ns for name in names]
    drop_events_after(tmp_path, 299)
    assert [os.stat(name).st_mtime_ns for name in names] == before
    assert len(list(tmp_path.iterdir())) == 2
    drop_events_after(tmp_path, None)
    assert not list(tmp_path.iterdir())


@needs_tensorflow
def test_event_files_hold_what_was_written_and_tensorflow_is_silent(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TF_")}
    result = subprocess.run(
        [sys.executable, "-c", WRITE_AND_READ, str(tmp_path)],
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert set(result.stderr.splitlines()) <= {
        "waiting for the TensorBoard event files to be written ..."
    }
    read = json.loads(result.stdout)
    assert [step for step, _ in read["loss"]] == [0, 1, 2]
    assert str([value for _, value in read["loss"]]) == "[0.0, nan, 2.0]"
    tags = set(read["tags"])
    assert {"train/loss", "sample", "mask", "norm/blocks"} <= tags and "x" not in tags
    assert {f"strange/{i}" for i in range(8)} <= tags and "wide/blocks" in tags
    assert {"seed", "optim.peak", "optim.betas.1", "optim.path"} <= set(read["hparams"])
