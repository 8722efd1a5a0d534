"""A trace of some steps for XProf."""

from pathlib import Path

import jax


class Trace:
    """Traces the steps from the first to the last of `steps`; None traces nothing.

    `tensorboard --logdir=DIRECTORY` shows the trace with the XProf plugin.
    """

    def __init__(self, directory: Path, steps: tuple[int, int] | None) -> None:
        self._directory = directory
        self._steps = steps
        self._running = False

    def before(self, step: int) -> None:
        """Starts the trace before the first traced step that this session runs."""
        if self._steps and not self._running and self._steps[0] <= step <= self._steps[1]:
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def ends(self, step: int) -> bool:
        """Returns whether a step is the last traced one: its work must finish before `after`."""
        return self._running and self._steps is not None and step >= self._steps[1]

    def after(self, step: int) -> None:
        """Writes the trace after the last traced step."""
        if self.ends(step):
            self._stop()

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            self._stop()

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
