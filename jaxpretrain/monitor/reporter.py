"""The reporter: makes named metrics of what the loop hands over, for the files and the terminal."""

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from jaxpretrain.config.durations import Pace
from jaxpretrain.devices.chips import GIB
from jaxpretrain.devices.memory import peak_memory
from jaxpretrain.diagnosis import metric_names
from jaxpretrain.diagnosis.clock import Clock, Rate
from jaxpretrain.diagnosis.findings import Finding
from jaxpretrain.diagnosis.watch import Watch
from jaxpretrain.display.progress import Progress
from jaxpretrain.display.wording import EVAL_DIGITS, format_facts, format_number
from jaxpretrain.monitor.writers import Writers
from jaxpretrain.parallel import distributed

SECONDS_APART = 10.0
"""The fewest seconds between two comparisons of processes; one takes milliseconds."""


@dataclass(frozen=True)
class Work:
    """The work of the steps, for rates and for the time that is left."""

    unit: str
    """The name of the units: "tokens" or "images"."""
    units_per_example: int
    pace: Pace
    """The number of examples in each step."""
    flops_per_unit: Callable[[int, bool], float]
    """The model's FLOPs at a step; attention counts the visible pairs alone where the second
    argument is true, else all pairs."""
    peak_flops: float | None
    """The peak of all devices together, in FLOPs a second; None where it is not known."""
    total_steps: int
    eval_every: int
    """The interval between evaluations in steps; 0 evaluates only at the end."""
    save_every: int
    """The interval between saves in steps; 0 saves only at the end."""
    num_devices: int
    num_parameters: int
    """The parameters without the embedding."""

    def units(self, step: int) -> int:
        """Returns the tokens or images of the first `step` steps."""
        return int(self.pace.examples(step)) * self.units_per_example


class Reporter:
    """Reports every `every`-th step, the first and the last, and the results of evaluations."""

    def __init__(
        self,
        work: Work,
        writers: Writers,
        progress: Progress,
        clock: Clock,
        every: int,
        watch: Watch | None = None,
        first_start: float | None = None,
    ) -> None:
        """Takes the parts of the report; `first_start` is the unix time at which the run began."""
        self._work = work
        self._writers = writers
        self._progress = progress
        self._clock = clock
        self._every = every
        self._watch = watch
        self._first_start = first_start
        self._rate = Rate(clock)
        self._hosts = Hosts(clock)
        self._window = (0.0, 0.0)  # data wait and train seconds at the last report
        self._first = 0  # step of this session

    def begin(self, step: int, config: Mapping[str, object]) -> None:
        """Begins a session with this resolved config, after `step` finished steps.

        The loop calls it before compilation, which then overlaps with the writers' slow imports.
        A line of the metrics marks where each session began, on how many devices, and the size of
        the run.
        """
        self._writers.hparams(config)
        total = self._work.total_steps
        if step >= total:
            self.message(f"nothing left to do: {step:,} of {total:,} steps are done")
        else:
            mark = {
                "run/num_devices": self._work.num_devices,
                "run/parameters": self._work.num_parameters,
                f"run/{self._work.unit}": self._work.units(total),
            }
            self._writers.scalars(step, mark)
            if self._watch is not None:
                self._watch.begin(step, time.time(), mark)
            self._first = step + 1
            self.message(f"going on after step {step:,}" if step else "starting at step 0")

    def start(self, step: int) -> None:
        """Starts the measurement of the speed, before the step that follows `step`."""
        self._rate.tick(self._work.units(step))
        self._window = self._waited()

    def step(self, step: int, values: Mapping[str, float | None]) -> list[Finding]:
        """Takes the metrics of a step, None for unknown means; returns new findings, often none."""
        judged = [values.get(name, 0.0) for name in ("loss", "grad_norm")]
        finite = all(value is not None and math.isfinite(value) for value in judged)
        first_or_last = step in (1, self._work.total_steps)
        if finite and not first_or_last and (self._every < 1 or step % self._every):
            if step - self._first < self._every:  # the first step alone says little about speed
                self._rate.tick(self._work.units(step))
                self._progress.revise(self._speed(step))
            self._progress.update(step)
            return self._look(step, values) if step == self._first else []
        work, units = self._work, self._work.units(step)
        self._rate.tick(units)
        metrics: dict[str, float | None] = {f"train/{n}": v for n, v in values.items()}
        if work.unit == "tokens":
            loss = values["loss"]
            metrics["train/perplexity"] = None if loss is None else metric_names.perplexity(loss)
        metrics[f"train/{work.unit}"] = units
        metrics |= self._speed(step)
        metrics["perf/data_wait_fraction"] = self._data_wait_fraction()
        metrics |= {f"perf/{name}_memory_gib": n / GIB for name, n in peak_memory().items()}
        metrics |= self._hosts.compare(step)
        if self._first_start is not None and (wall := time.time() - self._first_start) > 0:
            metrics["perf/goodput"] = self._clock.seconds()["train"] / wall
        metrics |= {f"time/{part}_seconds": s for part, s in self._clock.seconds().items()}
        self._writers.scalars(step, metrics)
        self._progress.update(step, metrics)
        return self._judge(step, metrics)

    def _speed(self, step: int) -> dict[str, float | None]:
        """Returns the speed at a step and the expected seconds to the end of the run."""
        work, rate = self._work, self._rate.units_per_second()
        speed = {f"perf/{work.unit}_per_second": rate}
        if work.peak_flops is not None and rate is not None:
            for name, causal in (("mfu", True), ("mfu_full_attention", False)):
                flops = rate * work.flops_per_unit(step, causal)
                speed[f"perf/{name}"] = flops / work.peak_flops
        total = work.total_steps
        evals, saves = (num_left(step, total, x) for x in (work.eval_every, work.save_every))
        speed["perf/eta_seconds"] = self._rate.eta(
            work.units(step), work.units(total), num_evals=evals, num_saves=saves
        )
        return speed

    def _look(self, step: int, values: Mapping[str, float | None]) -> list[Finding]:
        """Judges the first step of a session, and reports it where the loss has jumped."""
        metrics = {f"train/{name}": value for name, value in values.items()}
        found = self._judge(step, metrics)
        if found:
            self._writers.scalars(step, metrics)
        return found

    def signals(self, step: int, signals: Mapping[str, np.ndarray]) -> None:
        """Takes the signals of single parts and layers at a step, before the step itself."""
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
        """Takes the results of an evaluation; returns the findings that are new."""
        found = []
        if scalars:
            self._writers.scalars(step, scalars)
            self.message(f"eval at step {step:,}\n{format_facts(_by_subject(scalars), '  ')}")
            found = self._judge(step, scalars)
        if texts:
            self._writers.texts(step, texts)
            for text in texts.values():
                self.message(f"sample at step {step:,}: {' '.join(text.split())}")
        if images:
            self._writers.images(step, images)
        return found

    def items(self, step: int, items: Iterable[Mapping[str, object]]) -> None:
        """Takes the items that the last evaluation has scored; their texts are left out."""
        kept = ({k: v for k, v in item.items() if k != "continuations"} for item in items)
        self._writers.items({"step": step, **item} for item in kept)

    def publish(self) -> None:
        """Brings the files of the run to its folder where that is in a bucket."""
        self._writers.publish()

    def message(self, text: str) -> None:
        """Shows lines on the terminal."""
        self._progress.message(text)

    def activity(self, text: str) -> AbstractContextManager[None]:
        """Shows on the terminal how long the work inside takes."""
        return self._progress.activity(text)

    def _judge(self, step: int, metrics: Mapping[str, float | None]) -> list[Finding]:
        """Shows the news about the run; returns the findings that are new."""
        news = [] if self._watch is None else self._watch.update(step, time.time(), metrics)
        for piece in news:
            self.message(piece.line)
        return [piece.finding for piece in news if piece.has_come_up]

    def _waited(self) -> tuple[float, float]:
        return self._clock.seconds()["data_wait"], self._clock.train_seconds()

    def _data_wait_fraction(self) -> float:
        """Returns the share of the train time since the last report that steps waited for data."""
        before, self._window = self._window, self._waited()
        waited, passed = (b - a for a, b in zip(before, self._window, strict=True))
        return waited / passed if passed > 0 else 0.0


def _by_subject(scalars: Mapping[str, float | None]) -> dict[str, list[str]]:
    """Returns the results of each set or task in words: measures of quality, then the others.

    A measure with a standard error has a line of its own: `arc easy 41.2 % +- 1.0`.
    """
    subjects: dict[str, list[str]] = {}
    for name, value in scalars.items():
        subject, _, metric = name.removeprefix("eval/").rpartition("/")
        if value is None or metric_names.is_companion(name):
            continue
        error, chance = (
            scalars.get(metric_names.standard_error_name(name)),
            scalars.get(metric_names.untrained(name)),
        )
        text = re.sub(r"probe_(\d+)shot", r"\1-shot probe", metric).replace("_", " ") + " "
        lines = subjects.setdefault(subject, [])
        if error is None:
            text += format_number(value, EVAL_DIGITS)
            lines[-1:] = [", ".join([*lines[-1:], text])]
            continue
        scale, unit = (1, "") if metric_names.lower_is_better(name) else (100, " %")
        text += f"{scale * value:.1f}{unit} +- {scale * error:.1f}"
        lines.append(text if chance is None else f"{text}, random {scale * chance:.1f}")
    return subjects


def num_left(step: int, total: int, every: int) -> int:
    """Returns the number of multiples of `every` after `step`; the end of the run counts too."""
    if step >= total or every < 1:
        return int(step < total)
    return -(-total // every) - step // every


class Hosts:
    """Compares the processes of a run, each by its own clock, which finds one that others wait for.

    All devices work in step, so a slow host makes every step slow in all processes. What differs is
    the time that a process spends on its own, reading data and handing steps to its devices. Each
    process publishes that time, and the first one reads what is published; no process waits.
    """

    def __init__(self, clock: Clock, now: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._now = now
        self._last: tuple[int, float, float, float] | None = None

    def compare(self, step: int) -> dict[str, float]:
        """Returns `perf/slowest_host` and `perf/host_spread`, or nothing between two comparisons.

        The spread is the time that the slowest process spends on its own beyond the usual time,
        relative to a step. A single process is never compared.
        """
        if not distributed.has_others():
            return {}
        here = step, self._now(), self._clock.train_seconds(), self._clock.waited
        if self._last is None:
            self._last = here
        steps, apart, training, waited = (b - a for a, b in zip(self._last, here, strict=True))
        if apart < SECONDS_APART or not steps or not training:
            return {}
        self._last = here
        distributed.publish("own_seconds", f"{(training - waited) / steps:.6f}")
        if not distributed.is_primary():
            return {}
        own = {host: float(text) for host, text in distributed.published("own_seconds").items()}
        return spread(own, training / steps)


def spread(own: dict[int, float], step_seconds: float) -> dict[str, float]:
    """Returns the metrics, from the seconds of a step that each process spends on its own."""
    slowest = max(own, key=lambda host: own[host])
    others = [seconds for host, seconds in own.items() if host != slowest]
    if not others:
        return {}
    excess = own[slowest] - float(np.median(others))
    return {"perf/slowest_host": float(slowest), "perf/host_spread": excess / step_seconds}
