"""The loop: batches in, steps dispatched, results reported one step late, state saved.

The order inside a step is fixed. A step is dispatched before the one before it is reported, so the
device never waits for the host. A save goes on beside the next steps. Evaluation comes before
saving, unless the run is asked to stop: then it is left to the next session. A step whose loss or
gradient is not finite ends the run and is never saved.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpretrain.config.command import EXIT_STALLED
from jaxpretrain.data.contract import TrainingData
from jaxpretrain.data.loader import Batches, load_batches, load_in_workers
from jaxpretrain.diagnosis.clock import Clock
from jaxpretrain.diagnosis.findings import Finding
from jaxpretrain.evals.contract import Evaluator, Interrupted
from jaxpretrain.monitor.reporter import Reporter
from jaxpretrain.monitor.trace import Trace
from jaxpretrain.parallel.stop import Stop
from jaxpretrain.storage.staging import local_folder
from jaxpretrain.train.experiment import Resolved
from jaxpretrain.train.recheck import describe_unequal
from jaxpretrain.train.saves import Ended, Saver
from jaxpretrain.train.stages import StageProgram, Stages
from jaxpretrain.train.step import TrainState
from jaxpretrain.train.watchdog import Watchdog


class NonFinite(Ended):
    """A step gave a loss or gradient that is not a number."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"{problem}; that step is not saved. Go on from the last checkpoint with a lower peak "
            "learning rate or a longer warm-up; --config.train.on_bad_step=skip leaves such steps "
            "out"
        )


class Unequal(Ended):
    """A gradient that was computed twice has come out differently."""

    exit_code = EXIT_STALLED  # another start, perhaps without that host, can be right


class Alarm(Ended):
    """A finding of `monitor.stop_on` has ended the run, which is saved."""


@dataclass(frozen=True)
class Run:
    """The stages of a run, with all that is open while it trains."""

    stages: Stages
    workdir: Path
    data: TrainingData
    evaluators: list[Evaluator]
    saver: Saver
    clock: Clock
    reporter: Reporter
    stop: Stop
    watchdog: Watchdog
    is_evaluation_due: bool = False
    """True where the last session left out the evaluation of the step that it saved."""
    skipped: list[int] = field(default_factory=list)  # the newest steps, skipped in a row
    empty: list[int] = field(default_factory=list)  # all steps whose batch had nothing to predict

    @property
    def experiment(self) -> Resolved:
        """The experiment as configured."""
        return self.stages.program.experiment


def train(run: Run, state: TrainState, first: int) -> bool:
    """Trains from `first` finished steps to the end of the run; true when it got there.

    Raises NonFinite, NotSaved (the last save failed, or several in a row) or Alarm.
    """
    timeline = run.experiment.timeline
    last = timeline.num_steps
    step, is_saved = first, run.saver.has_checkpoints()
    in_flight: tuple[int, Mapping[str, Any]] | None = None
    is_due = _evaluate_first(run, state, first)
    stops = is_due
    with (
        _load(run, first, last) as batches,
        Trace(local_folder(run.workdir) / "profile", run.experiment.monitor.profile) as trace,
        run.saver.timer,
    ):
        run.reporter.start(first)
        for step in range(first + 1, 1 + (first if stops else last)):
            stage = run.stages.at(step)
            with run.clock.measure("compile"):  # takes time when a stage needs it first
                train_step = stage.train_step
                probe = stage.probe if _due(step, timeline.signals_every) else None
            run.watchdog.enter("first batch" if step == first + 1 else "batch", step)
            batch = _next(run, batches)
            run.watchdog.enter("step", step)
            with run.clock.measure("train"):
                trace.before(step)
                batch = stage.program.layout.put(batch, stage.batch_size)
                if _due(step, timeline.recheck_every):
                    in_flight = _recheck(run, stage, state, batch, step, in_flight)
                state, metrics = train_step(state, batch)
                signals = metrics.pop("signals")  # left on the device unless they are due
                if probe is not None:
                    metrics["signals"] = signals | probe(state.params, batch)
                _report(run, in_flight)
                run.saver.report()
                in_flight = (step, metrics)
                evaluates = step == last or _due(step, timeline.eval_every)
                stops = run.stop.reached()
                place = run.saver.due(step)
                if step == last or stops:
                    place = "workdir"
                if evaluates or place or trace.ends(step):
                    _report(run, in_flight)
                    in_flight = None
                    trace.after(step)
            is_due = evaluates and not evaluate(run, state, step, is_asked_to_stop=stops)
            stops |= is_due
            if place == "workdir" or stops:
                run.saver.save(state, step, is_last=stops or step == last, is_evaluation_due=is_due)
                is_saved = True
            elif place == "local":
                run.saver.save_locally(state, step)
            if stops:
                break
    if not is_saved:
        run.saver.save(state, step, is_last=True, is_evaluation_due=is_due)
    if step != last and (alarm := run.stop.alarm()):
        raise Alarm(f"step {step} is saved. {alarm}")
    return step >= last and not is_due


def _recheck(
    run: Run,
    stage: StageProgram,
    state: TrainState,
    batch: Mapping[str, jax.Array],
    step: int,
    in_flight: tuple[int, Mapping[str, Any]] | None,
) -> None:
    """Computes the gradient of a step twice; Unequal, in all processes, where that differs.

    The step before is reported first, so that nothing is in flight, which None says.
    """
    _report(run, in_flight)
    problem = describe_unequal(stage.recheck.unequal(state, batch))
    run.watchdog.beat()
    if problem is not None:
        raise Unequal(
            f"step {step:,}: the same gradient, computed twice, differs {problem}; the step was "
            "not made and nothing of it is saved. Leave that host out, and start the same command"
        )


def _next(run: Run, batches: Batches) -> Mapping[str, np.ndarray]:
    """Waits for the next batch."""
    with run.clock.measure("data_wait"):
        batch = next(batches)
    for line in run.data.report():
        run.reporter.message(line)
    return batch


def _evaluate_first(run: Run, state: TrainState, first: int) -> bool:
    """Evaluates before the first step where that is due; returns true where it is still due."""
    if first > 0 and not run.is_evaluation_due:
        return False
    is_due = not evaluate(run, state, first)
    if run.is_evaluation_due and not is_due:
        run.saver.checkpoints.amend(first, evaluation_due=False)
    return is_due


def evaluate(run: Run, state: TrainState, step: int, *, is_asked_to_stop: bool = False) -> bool:
    """Runs all evaluators on the weights that the config names, and reports their results.

    Returns false, without results, where somebody outside asks the run to stop: saving comes first.
    """
    try:
        if is_asked_to_stop and run.evaluators and run.stop.alarm() is None:
            raise Interrupted
        run.watchdog.enter("evaluation", step)
        with run.clock.measure("eval"):
            ema = run.experiment.train.ema
            params = state.ema if ema is not None and ema.evaluate else state.params
            results = []
            for number, evaluator in enumerate(run.evaluators, 1):
                interrupt(run.stop)
                which = f" ({number} of {len(run.evaluators)})" if run.evaluators[1:] else ""
                with run.reporter.activity(f"evaluating step {step:,}{which}"):
                    results.append(evaluator(params))
    except Interrupted:
        run.reporter.message(
            f"asked to stop: the evaluation of step {step:,} is left out; the same command runs it "
            "before it goes on"
        )
        return False
    for result in results:
        _stop_if_configured(
            run, run.reporter.results(step, result.scalars, result.texts, result.images)
        )
    details = [result.items for result in results if result.items is not None]
    if details and step == run.experiment.timeline.num_steps:
        run.reporter.items(step, (item for items in details for item in items.predictions))
    return True


def between_batches(stop: Stop, watchdog: Watchdog) -> None:
    """Notes that an evaluation goes on; Interrupted where somebody outside asks the run to stop."""
    watchdog.beat()
    interrupt(stop)


def interrupt(stop: Stop) -> None:
    """Raises Interrupted where somebody outside asks the run to stop."""
    if stop.reached() and stop.alarm() is None:
        raise Interrupted


def _report(run: Run, in_flight: tuple[int, Mapping[str, Any]] | None) -> None:
    """Waits for a dispatched step and reports it; NonFinite where it ends the run."""
    if in_flight is None:
        return
    step, metrics = in_flight
    run.watchdog.enter("step", step)
    with run.clock.waiting():
        fetched = jax.device_get(dict(metrics))
    run.watchdog.finish(step)
    if signals := fetched.pop("signals", None):
        run.reporter.signals(step, signals)
    values = {name: float(value) for name, value in fetched.items()}
    samples = run.stages.samples(step)
    epochs = run.data.epochs(samples.stop)
    if values["weight"] == 0:  # its means are unknown
        known = {name: None if math.isnan(value) else value for name, value in values.items()}
        _stop_if_configured(run, run.reporter.step(step, known | epochs))
        run.empty.append(step)
        count = len(run.empty)
        if count & (count - 1) == 0:  # the first, second, fourth, eighth, ... of them
            run.reporter.message(
                f"warning: step {step:,} changes no weights: nothing counts in samples "
                f"{samples[0]:,} to {samples[-1]:,}; so far {count:,} such steps"
            )
        return
    _stop_if_configured(run, run.reporter.step(step, values | epochs))
    if not values.get("skipped"):
        run.skipped.clear()
        for name in ("loss", "grad_norm"):
            if not math.isfinite(values[name]):
                raise NonFinite(f"{name} is {values[name]} at step {step}")
        return
    run.skipped.append(step)
    run.reporter.message(
        f"warning: skipped step {step:,}, samples {samples[0]:,} to {samples[-1]:,}: "
        f"loss {values['loss']:.4g}, gradient norm {values['grad_norm']:.4g}"
    )
    if len(run.skipped) >= run.experiment.train.skip.max_in_row:
        raise NonFinite(f"{len(run.skipped)} steps in a row were skipped, up to step {step}")


def _stop_if_configured(run: Run, findings: Sequence[Finding]) -> None:
    """Requests a stop where `monitor.stop_on` names one of the findings."""
    for finding in findings:
        if finding.name in run.experiment.monitor.stop_on:
            run.stop.request_stop(f"monitor.stop_on names {finding.name}: {finding.reading}")


def _load(run: Run, first: int, last: int) -> Batches:
    """Starts to read the batches of the steps after `first`."""
    if run.data.num_workers:
        samples, workers = run.stages.local_samples, run.data.num_workers
        return load_in_workers(run.data.batch, samples, first + 1, last + 1, num_workers=workers)
    return load_batches(partial(run.stages.read, run.data), first + 1, last + 1)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
