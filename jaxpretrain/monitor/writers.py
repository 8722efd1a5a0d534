"""Where the results of a run go: numbers to `metrics.jsonl`, those of single layers to
`signals.jsonl`, texts to `samples.jsonl`, pictures to PNG files, and all of it to TensorBoard event
files if wanted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxpretrain.monitor.pictures import write_pictures
from jaxpretrain.monitor.tensorboard import TensorBoard, drop_events_after
from jaxpretrain.storage.jsonl import JsonlWriter, drop_after, to_number, to_numbers


class Writers:
    """Writes a run's metrics; no method waits for more than one line of `metrics.jsonl`.

    Monitoring never ends a run: trouble becomes one warning. Without `jsonl` and `tensorboard`
    every method does nothing, which is what the processes other than the first need.
    """

    def __init__(
        self,
        jsonl: JsonlWriter | None,
        tensorboard: TensorBoard | None,
        message: Callable[[str], None],
        pictures: Path | None = None,
        samples: JsonlWriter | None = None,
        signals: JsonlWriter | None = None,
    ) -> None:
        self._pictures = pictures
        self._signals = signals
        self._samples = samples
        self._jsonl = jsonl
        self._tensorboard = tensorboard
        self._message = message
        self._has_warned = False

    def __enter__(self) -> Writers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes numbers of Python, numpy or JAX.

        None (unknown) is null in `metrics.jsonl`, as NaN and infinite numbers are, and absent from
        TensorBoard, whose numbers are float32: what is larger is infinite there.
        """
        if self._jsonl is None and self._tensorboard is None:
            return
        numbers = {name: to_number(value) for name, value in scalars.items()}
        self._write(self._jsonl, step, numbers)
        with np.errstate(over="ignore"):
            known = {name: np.float32(x) for name, x in numbers.items() if x is not None}
        self._show("write_scalars", step, known)

    def signals(self, step: int, signals: Mapping[str, np.ndarray]) -> None:
        """Writes a number for each layer, [layers]; in TensorBoard, how they are spread.

        TensorBoard groups by the beginning of a name, which there is that of the quantity.
        """
        self._write(self._signals, step, {name: to_numbers(x) for name, x in signals.items()})
        spread = {
            name.removeprefix("signals/"): known
            for name, x in signals.items()
            if x.ndim and len(known := x[np.isfinite(x)])
        }
        self._show("write_histograms", step, spread)

    def texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Keeps texts, and shows them in TensorBoard."""
        self._write(self._samples, step, texts)
        self._show("write_texts", step, dict(texts))

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Keeps pictures and shows them in TensorBoard: name -> uint8 (height, width, channels)."""
        if self._pictures is not None:
            try:
                write_pictures(self._pictures, step, images)
            except OSError as error:
                self._message(f"warning: the pictures of step {step} are not kept: {error}")
        self._show("write_images", step, dict(images))

    def hparams(self, hparams: Mapping[str, Any]) -> None:
        """Shows a nested configuration in TensorBoard, under names such as `optim.peak`."""
        # TensorBoard takes text, numbers and booleans alone: through JSON, the rest is its text.
        self._show("write_hparams", json.loads(json.dumps(dict(hparams), default=str)))

    def flush(self) -> None:
        """Has what was written so far appear in TensorBoard soon, rather than in two minutes."""
        self._show("flush")

    def close(self) -> None:
        """Completes all files; waits for TensorFlow's import when that is still under way."""
        for file in (self._jsonl, self._samples, self._signals):
            if file is not None:
                file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def _write(self, file: JsonlWriter | None, step: int, values: Mapping[str, Any]) -> None:
        """Writes a line; the first failure of all is a warning."""
        try:
            if file is not None:
                file.write(step, values)
        except OSError as error:
            if not self._has_warned:
                self._message(f"warning: metrics.jsonl misses lines from step {step} on: {error}")
            self._has_warned = True

    def _show(self, method: str, *args: Any) -> None:
        if self._tensorboard is not None:
            self._tensorboard.call(method, *args)


def open_writers(
    workdir: Path,
    *,
    resume_step: int | None,
    tensorboard: bool,
    is_primary: bool = True,
    message: Callable[[str], None] | None = None,
) -> Writers:
    """The writers of the run in `workdir`.

    Args:
      workdir: gets `metrics.jsonl`, `signals.jsonl`, `samples.jsonl`, `pictures/` and the event
        files.
      resume_step: step of the restored checkpoint: what these files have of later ones is dropped.
        None starts anew, without those of an attempt that never saved.
      tensorboard: also write event files. Costs nothing at start, see `tensorboard.py`.
      is_primary: only this process writes.
      message: shows the user one line of text, also from another thread, such as
        `Progress.message`; standard error by default.
    """
    message = message or _print_on_stderr
    if not is_primary:
        return Writers(None, None, message)
    paths = [workdir / f"{name}.jsonl" for name in ("metrics", "samples", "signals")]
    for path in paths:
        if resume_step is None:
            path.unlink(missing_ok=True)
        else:
            drop_after(path, resume_step)
    drop_events_after(workdir, resume_step)
    events = TensorBoard(workdir, message) if tensorboard else None
    metrics, samples, signals = map(JsonlWriter, paths)
    return Writers(metrics, events, message, workdir, samples, signals)


def _print_on_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
