"""Turns what the loop hands over into named metrics, for the writers and the terminal."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpretrain.config.durations import Pace
from jaxpretrain.diagnosis.clock import Clock, Rate
from jaxpretrain.diagnosis.findings import Finding
from jaxpretrain.diagnosis.metric_names import perplexity
from jaxpretrain.diagnosis.watch import Watch
from jaxpretrain.display.progress import Progress
from jaxpretrain.display.wording import EVAL_DIGITS, format_number
from jaxpretrain.monitor.hosts import Hosts
from jaxpretrain.monitor.writers import Writers
from jaxpretrain.parallel.chips import GIB
from jaxpretrain.parallel.devices import peak_memory


@dataclass(frozen=True)
class Work:
    """What the steps do, for rates and for the time that is left."""

    unit: str  # "tokens" or "images"
    units_per_example: int
    pace: Pace
    flops_per_unit: Callable[[int, bool], float]
    """The model's FLOPs at a step; attention counts the visible pairs alone where the second
    argument is true, else all pairs."""
    peak_flops: float | None  # of all devices together; None: unknown, then no MFU
    total_steps: int
    eval_every: int
    save_every: int
    num_devices: int

    def units(self, step: int) -> int:
        """Tokens or images of the first `step` steps."""
        return int(self.pace.examples(step)) * self.units_per_example

    def evals_left(self, step: int) -> int:
        """Evaluations still to come after `step`."""
        return _left(step, self.total_steps, self.eval_every)

    def saves_left(self, step: int) -> int:
        """Saves still to come after `step`."""
        return _left(step, self.total_steps, self.save_every)


class Reporter:
    """Reports steps (every `every`-th, the first and the last) and evaluation results."""

    def __init__(
        self,
        work: Work,
        writers: Writers,
        progress: Progress,
        clock: Clock,
        every: int,
        watch: Watch | None = None,
    ) -> None:
        self._work = work
        self._writers = writers
        self._progress = progress
        self._clock = clock
        self._every = every
        self._watch = watch
        self._rate = Rate(clock)
        self._hosts = Hosts(clock)
        self._window = (0.0, 0.0)  # data wait and train seconds at the last report
        self._first = 0  # step of this session

    def begin(self, step: int, config: Mapping[str, Any]) -> None:
        """The run begins, or goes on after `step` finished steps, with this resolved config.

        Called before compilation, with which the writers' slow imports then overlap. Leaves a mark
        in the metrics: whoever reads them, and the watch, sees where each session began, and on how
        many devices.
        """
        self._writers.hparams(config)
        total = self._work.total_steps
        if step >= total:
            self.message(f"nothing left to do: {step:,} of {total:,} steps are done")
        else:
            mark = {"run/num_devices": self._work.num_devices}
            self._writers.scalars(step, mark)
            if self._watch is not None:
                self._watch.begin(step, time.time(), mark)
            self._first = step + 1
            self.message(f"going on after step {step:,}" if step else "starting at step 0")

    def start(self, step: int) -> None:
        """The first step after `step` finished ones is about to run."""
        self._rate.tick(self._work.units(step))
        self._window = self._waited()

    def step(self, step: int, values: Mapping[str, float | None]) -> list[Finding]:
        """Takes the metrics of a step: the model's means and the step's own; returns what is new.

        Means of a batch in which nothing counts are None.

        New are findings that have come up. Most steps bring none.
        """
        judged = [values.get(name, 0.0) for name in ("loss", "grad_norm")]
        finite = all(value is not None and math.isfinite(value) for value in judged)
        first_or_last = step in (1, self._work.total_steps)
        if finite and not first_or_last and (self._every < 1 or step % self._every):
            self._progress.update(step)
            return self._look(step, values) if step == self._first else []
        work = self._work
        units = work.units(step)
        self._rate.tick(units)
        metrics: dict[str, float | None] = {f"train/{n}": v for n, v in values.items()}
        if work.unit == "tokens":
            loss = values["loss"]
            metrics["train/perplexity"] = None if loss is None else perplexity(loss)
        metrics[f"train/{work.unit}"] = units
        rate = self._rate.units_per_second()
        metrics[f"perf/{work.unit}_per_second"] = rate
        if work.peak_flops is not None and rate is not None:
            for name, causal in (("mfu", True), ("mfu_full_attention", False)):
                flops = rate * work.flops_per_unit(step, causal)
                metrics[f"perf/{name}"] = flops / work.peak_flops
        metrics["perf/data_wait_fraction"] = self._data_wait_fraction()
        metrics["perf/eta_seconds"] = self._rate.eta(
            units,
            work.units(work.total_steps),
            num_evals=work.evals_left(step),
            num_saves=work.saves_left(step),
        )
        metrics |= {f"perf/{name}_memory_gib": n / GIB for name, n in peak_memory().items()}
        metrics |= self._hosts.compare(step)
        for part, seconds in self._clock.seconds().items():
            metrics[f"time/{part}_seconds"] = seconds
        self._writers.scalars(step, metrics)
        self._progress.update(step, metrics)
        return self._judge(step, metrics)

    def _look(self, step: int, values: Mapping[str, float | None]) -> list[Finding]:
        """Judges the first step of a session, which may have jumped; reports it only if it has."""
        metrics = {f"train/{name}": value for name, value in values.items()}
        found = self._judge(step, metrics)
        if found:
            self._writers.scalars(step, metrics)
        return found

    def signals(self, step: int, signals: Mapping[str, np.ndarray]) -> None:
        """Takes what single parts and layers show at a step, which comes next."""
        named = {f"signals/{name}": np.asarray(values) for name, values in signals.items()}
        self._writers.signals(step, named)
        if self._watch is not None:
            self._watch.add(step, time.time(), named)

    def results(
        self,
        step: int,
        scalars: Mapping[str, float | None],
        texts: Mapping[str, str],
        images: Mapping[str, np.ndarray],
    ) -> list[Finding]:
        """Takes the results of an evaluation; returns the findings that have come up."""
        found = []
        if scalars:
            self._writers.scalars(step, scalars)
            for line in _by_subject(scalars):
                self.message(f"eval at step {step:,}: {line}")
            found = self._judge(step, scalars)
        if texts:
            self._writers.texts(step, texts)
            for text in texts.values():
                self.message(f"sample at step {step:,}: {' '.join(text.split())}")
        if images:
            self._writers.images(step, images)
        return found

    def message(self, text: str) -> None:
        """A line on the terminal."""
        self._progress.message(text)

    def _judge(self, step: int, metrics: Mapping[str, float | None]) -> list[Finding]:
        """Says what is new about the run."""
        news = [] if self._watch is None else self._watch.update(step, time.time(), metrics)
        for piece in news:
            self.message(piece.line)
        return [piece.finding for piece in news if piece.has_come_up]

    def _waited(self) -> tuple[float, float]:
        return self._clock.seconds()["data_wait"], self._clock.train_seconds()

    def _data_wait_fraction(self) -> float:
        """Share of the train time since the last report that was spent waiting for data."""
        now = self._waited()
        waited, passed = (b - a for a, b in zip(self._window, now, strict=True))
        self._window = now
        return waited / passed if passed > 0 else 0.0


def _by_subject(scalars: Mapping[str, float | None]) -> Iterator[str]:
    """A line for each set or task, `sotu: loss 2.5000  perplexity 12.182`, of what is known."""
    subjects: dict[str, list[str]] = {}
    for name, value in scalars.items():
        subject, _, metric = name.removeprefix("eval/").rpartition("/")
        if value is not None:
            subjects.setdefault(subject, []).append(f"{metric} {format_number(value, EVAL_DIGITS)}")
    for subject, shown in subjects.items():
        yield f"{subject}: {'  '.join(shown)}"


def _left(step: int, total: int, every: int) -> int:
    """Multiples of `every` after `step`, and the end of the run, which always counts."""
    if step >= total:
        return 0
    if every < 1:
        return 1
    multiples = total // every - step // every
    return multiples + (1 if total % every else 0)
