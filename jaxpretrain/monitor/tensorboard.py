"""TensorBoard event files: CLU writes them on a thread of their own, and a resume cuts them.

`clu.metric_writers` imports TensorFlow, which takes 4 to 16 seconds. So the writing thread imports
both at the first call, while training goes on; what is written meanwhile waits in a queue. The
thread never ends a run: any failure in it becomes one warning.
"""

import contextlib
import os
import queue
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxpretrain.storage.files import atomic_file

EVENT_FILES = "events.out.tfevents.*"
"""The names of event files."""


class TensorBoard:
    """Calls the methods of a CLU metric writer in order, on a background thread.

    The thread builds the writer for the folder `logdir`, and calls `message` too, which shows the
    user one line of text.
    """

    def __init__(
        self,
        logdir: Path,
        message: Callable[[str], None],
        make_writer: Callable[[Path], object] | None = None,
    ) -> None:
        self._logdir = logdir
        self._message = message
        self._make_writer = make_writer or _summary_writer
        self._calls: queue.SimpleQueue[tuple[str, tuple[object, ...]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._failed = threading.Event()

    def call(self, method: str, *args: object) -> None:
        """Queues `writer.method(*args)`; returns at once. Does nothing after a failure."""
        if self._failed.is_set():
            return
        self._calls.put((method, args))
        if self._thread is None:
            # A daemon, so that a run that dies without close() does not hang in its exit.
            self._thread = threading.Thread(target=self._run, name="tensorboard", daemon=True)
            self._thread.start()

    def close(self, patience: float = 2.0, timeout: float = 120.0) -> None:
        """Waits up to `timeout` seconds until all is written, and says so after `patience`."""
        if self._thread is None:
            return
        self._calls.put(("close", ()))
        self._thread.join(patience)
        if self._thread.is_alive():
            self._message("waiting for the TensorBoard event files to be written ...")
            self._thread.join(timeout - patience)
        if self._thread.is_alive():
            self._message(
                f"warning: TensorBoard event files are incomplete: gave up after {timeout:.0f} s"
            )
        self._thread = None

    def _run(self) -> None:
        try:
            writer = self._make_writer(self._logdir)
            method = ""
            while method != "close":
                method, args = self._calls.get()
                getattr(writer, method)(*args)
        except ImportError as error:
            self._fail(f"no TensorBoard event files: {error}; metrics.jsonl has all scalars")
        except Exception as error:  # no failure here may end the run
            self._fail(f"TensorBoard event files end here: {type(error).__name__}: {error}")

    def _fail(self, reason: str) -> None:
        self._failed.set()
        self._message("warning: " + " ".join(reason.split()))


def _summary_writer(logdir: Path) -> object:
    # TensorFlow begins with lines about oneDNN and CPU instructions. Settings of the user stay; "1"
    # is also JAX's choice, and a higher level would hide warnings of XLA.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import tensorflow as tf

    # TensorFlow would take most of each GPU's memory. It refuses where the process has used it
    # before; its devices are chosen then.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
    from clu import metric_writers

    return metric_writers.SummaryWriter(str(logdir))


def drop_events_after(logdir: Path, step: int | None) -> None:
    """Removes the events above `step` from the event files; None removes the files.

    Otherwise TensorBoard would show these steps twice after they are repeated: a mark of a restart
    (`SessionLog.START`) does not hide them in all of its readers. Files are copied record by
    record; a file without such events stays as it is.
    """
    for path in sorted(logdir.glob(EVENT_FILES)):
        if step is None:
            path.unlink()
        elif any(_step_of(event) > step for _, event in _records(path)):
            # TensorBoard ignores files of this name.
            with atomic_file(path, path.with_name(f".{os.getpid()}.tmp")) as file:
                for record, event in _records(path):
                    if _step_of(event) <= step:
                        file.write(record)


def _records(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yields each record of an event file and its event, up to the end or a torn record.

    A record is the length of the event in 8 bytes, 4 bytes of checksum, the event, 4 of checksum.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while len(header := file.read(12)) == 12:
            length = struct.unpack_from("<Q", header)[0] + 4
            if length > size - file.tell():
                return
            event = file.read(length)
            yield header + event, event[:-4]


def _step_of(event: bytes) -> int:
    """Returns the step of a serialized `Event`: the second field, after the time; 0 is left out."""
    place = 9 if event[:1] == b"\x09" else 0
    if event[place : place + 1] != b"\x10":
        return 0
    step = shift = 0
    for byte in event[place + 1 :]:
        step |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return step
