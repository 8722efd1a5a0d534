"""The files of a run's results: numbers, signals of layers, texts, pictures, TensorBoard events."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np

from jaxpretrain.data.images.image_codec import encode_png
from jaxpretrain.display.wording import to_number
from jaxpretrain.monitor.tensorboard import EVENT_FILES, TensorBoard, drop_events_after
from jaxpretrain.storage.files import atomic_file, write_atomically
from jaxpretrain.storage.jsonl import JsonlWriter, drop_after, drop_all, to_numbers
from jaxpretrain.storage.paths import is_remote
from jaxpretrain.storage.staging import Staging

FileName = Literal["metrics", "signals", "samples"]
"""The names of the `.jsonl` files: numbers, numbers of single layers, texts."""
LOGS = tuple(f"{name}.jsonl" for name in get_args(FileName))
"""The names of these files, with their ending."""
PICTURES = "pictures"
"""The name of the folder of pictures in the folder of a run."""
ITEMS = "items.jsonl"
"""The name of the file with the items of the last evaluation."""


class Writers:
    """Writes a run's results; no method waits for more than one line of a file.

    A failure never ends the run: it becomes one warning. Without files and TensorBoard the methods
    do nothing, as in all processes but the first. `message` shows the user one line of text; it is
    called from other threads too. The folder `workdir` gets the pictures and
    the items of tasks; `staging` is the one of a run in a bucket.
    """

    def __init__(
        self,
        message: Callable[[str], None],
        files: Mapping[FileName, JsonlWriter] | None = None,
        workdir: Path | None = None,
        tensorboard: TensorBoard | None = None,
        staging: Staging | None = None,
    ) -> None:
        self._message = message
        self._files = files or {}
        self._workdir = workdir
        self._tensorboard = tensorboard
        self._staging = staging
        self._has_warned = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def scalars(self, step: int, scalars: Mapping[str, object]) -> None:
        """Writes numbers of Python, numpy or JAX.

        `metrics.jsonl` has null for None, which is unknown, for NaN and for infinite numbers.
        TensorBoard has no None, and its numbers are float32: larger ones are infinite there.
        """
        if not self._files and self._tensorboard is None:
            return
        numbers = {name: to_number(value) for name, value in scalars.items()}
        self._write("metrics", step, numbers)
        with np.errstate(over="ignore"):
            known = {name: np.float32(x) for name, x in numbers.items() if x is not None}
        self._show("write_scalars", step, known)

    def signals(self, step: int, signals: Mapping[str, np.ndarray]) -> None:
        """Writes arrays with a number for each layer, [layers]; TensorBoard gets histograms.

        TensorBoard groups them by the beginnings of their names, which are the quantities.
        """
        self._write("signals", step, {name: to_numbers(x) for name, x in signals.items()})
        spread = {
            name.removeprefix("signals/"): known
            for name, x in signals.items()
            if x.ndim and len(known := x[np.isfinite(x)])
        }
        self._show("write_histograms", step, spread)

    def texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes texts."""
        self._write("samples", step, texts)
        self._show("write_texts", step, dict(texts))

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes pictures, uint8 [height, width, channels], by their names."""
        if self._workdir is not None:
            try:
                write_pictures(self._workdir, step, images)
            except OSError as error:
                self._message(f"warning: the pictures of step {step} are not kept: {error}")
        self._show("write_images", step, dict(images))

    def items(self, items: Iterable[Mapping[str, object]]) -> None:
        """Writes the file of the items of an evaluation, a line each; without items, none."""
        if self._workdir is None or not (lines := [json.dumps(item) for item in items]):
            return
        try:
            write_atomically(self._workdir / ITEMS, "\n".join(lines) + "\n")
        except OSError as error:
            self._message(f"warning: the items of the last evaluation are not kept: {error}")

    def hparams(self, hparams: Mapping[str, object]) -> None:
        """Shows a nested config in TensorBoard, under names such as `optim.peak`."""
        # TensorBoard takes only text, numbers and booleans: JSON makes everything else a text.
        self._show("write_hparams", json.loads(json.dumps(dict(hparams), default=str)))

    def publish(self) -> None:
        """Brings the files to the folder of the run where that is in a bucket, and waits."""
        if self._staging is not None:
            self._show("flush")
            self._staging.publish()

    def close(self) -> None:
        """Completes all files; waits for TensorFlow's import where that is still under way."""
        for file in self._files.values():
            file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._staging is not None:
            self._staging.publish()

    def _write(self, name: FileName, step: int, values: Mapping[str, object]) -> None:
        """Writes a line; the first failure of all becomes a warning."""
        try:
            if name in self._files:
                self._files[name].write(step, values)
        except OSError as error:
            if not self._has_warned:
                self._message(f"warning: {name}.jsonl misses lines from step {step} on: {error}")
            self._has_warned = True

    def _show(self, method: str, *args: object) -> None:
        if self._tensorboard is not None:
            self._tensorboard.call(method, *args)


def open_writers(
    workdir: Path,
    message: Callable[[str], None],
    *,
    resume_step: int | None,
    tensorboard: bool,
    guard: Callable[[], None] = lambda: None,
) -> Writers:
    """Returns the writers of the run in a folder.

    Lines and events after `resume_step`, the step of the restored checkpoint, are dropped; None
    drops all, which an attempt without a checkpoint has left. `guard` raises OSError where a folder
    in a bucket is no longer the run's.
    """
    staging = Staging(workdir, LOGS, message, guard) if is_remote(workdir) else None
    local = workdir if staging is None else staging.folder
    files: dict[FileName, JsonlWriter] = {}
    for name in get_args(FileName):
        path = workdir / f"{name}.jsonl"
        if resume_step is None:
            drop_all(path)
        else:
            drop_after(path, resume_step)
        files[name] = JsonlWriter(local / path.name)
    if staging is not None:
        for path in workdir.glob(EVENT_FILES):
            staging.fetch(path) if resume_step is not None else path.unlink()
    drop_events_after(local, resume_step)
    events = TensorBoard(local, message) if tensorboard else None
    return Writers(message, files, local, events, staging)


def write_pictures(folder: Path, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Writes images, uint8 [height, width, 3], as `pictures/<name>/<step>.png` in the folder."""
    for name, pixels in images.items():
        path = folder / PICTURES / name / f"{step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write(encode_png(pixels))
