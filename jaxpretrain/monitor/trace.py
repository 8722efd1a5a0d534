"""An XProf trace of chosen steps."""

from pathlib import Path
from types import TracebackType

import jax


class Trace:
    """Traces from the first to the last of `steps`; does nothing when `steps` is None.

    View it with `tensorboard --logdir=DIRECTORY` and the XProf plugin.
    """

    def __init__(self, directory: Path, steps: tuple[int, int] | None) -> None:
        self._directory = directory
        self._steps = steps
        self._running = False

    def before(self, step: int) -> None:
        """Starts the trace when `step` is the first to be traced, or a resume fell inside."""
        if self._steps and not self._running and self._steps[0] <= step <= self._steps[1]:
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def ends(self, step: int) -> bool:
        """Whether `step` is the last traced one: its work must finish before `after`."""
        return self._running and self._steps is not None and step >= self._steps[1]

    def after(self, step: int) -> None:
        """Writes the trace when `step` was the last to be traced."""
        if self.ends(step):
            self._stop()

    def __enter__(self) -> "Trace":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._running:
            self._stop()

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
