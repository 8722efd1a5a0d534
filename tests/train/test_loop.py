import itertools
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.config.errors import InputError
from jaxpretrain.diagnosis.clock import Clock
from jaxpretrain.diagnosis.findings import Finding
from jaxpretrain.display.progress import Progress
from jaxpretrain.evals.contract import Items, Results
from jaxpretrain.evals.held_out import HeldOut
from jaxpretrain.monitor.reporter import Reporter
from jaxpretrain.monitor.writers import open_writers
from jaxpretrain.parallel.stop import StopRequest
from jaxpretrain.storage.jsonl import read_lines, to_numbers
from jaxpretrain.train import loop
from jaxpretrain.train.experiment import Skip
from jaxpretrain.train.program import Program
from jaxpretrain.train.reporting import work_of
from jaxpretrain.train.saves import NotSaved, Saver
from jaxpretrain.train.stages import StageProgram, Stages
from jaxpretrain.train.step import TrainState
from jaxpretrain.train.watchdog import Watchdog


@dataclass
class Recorder:
    """Stands for all that the loop talks to, and writes down who was called when."""

    num_steps: int
    bad: dict[int, dict[str, float]] = field(default_factory=dict)
    """Metrics of steps that go wrong."""
    stop_at: int | None = None
    """The step during which a signal comes."""
    saved: list[int] = field(default_factory=list)
    """Steps that have a checkpoint."""
    unsavable: dict[int, str] = field(default_factory=dict)
    """Why the saves of these steps fail."""
    slow: bool = False
    """Whether a save ends only when it is waited for."""
    interrupted_at: int | None = None
    """The step in whose evaluation a signal comes."""
    first: int = 0
    is_evaluation_due: bool = False
    documents: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Of the checkpoints."""
    is_published: bool = False
    under_way: int | None = None
    outcomes: list[SimpleNamespace] = field(default_factory=list)
    events: list[tuple[str, Any]] = field(default_factory=list)
    samples: list[np.ndarray] = field(default_factory=list)
    values: dict[int, dict[str, float | None]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    found: dict[int, list[Finding]] = field(default_factory=dict)
    """What comes up with the reports of steps."""
    stop_request: StopRequest = field(default_factory=StopRequest)
    scored: Items | None = None
    """What each evaluation tells of its items."""

    def train_step(self, state: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
        assert batch["tokens"].shape == (16, 16)
        step = state + 1
        self.events.append(("dispatch", step))
        if step == self.stop_at:
            self.stop_request.reason = "SIGTERM"
        metrics = {"loss": 3.0, "grad_norm": 1.0, "weight": 240.0} | self.bad.get(step, {})
        values = {name: jax.device_put(np.float32(value)) for name, value in metrics.items()}
        return step, values | {"signals": {"grad_norm/blocks": jax.device_put(np.ones(2))}}

    def probe(self, params: Any, batch: Any) -> dict[str, jax.Array]:
        self.events.append(("probe", None))
        return {"attention_logit/blocks": jax.device_put(np.zeros(2))}

    num_workers = 0

    def report(self) -> list[str]:
        return []

    def epochs(self, num_samples: int) -> dict[str, float]:
        return {}

    def batch(self, samples: np.ndarray) -> dict[str, np.ndarray]:
        self.samples.append(samples)
        return {"tokens": np.zeros((len(samples), 16), np.int32)}

    def steps(self) -> list[int]:
        return self.saved

    def publish(self) -> None:
        self.is_published = True

    def save(self, step: int, state: Any, extra: dict[str, Any]) -> None:
        assert self.is_published, "the lines of a run come before the checkpoint"
        self.is_published = False
        assert state == step and extra["data_position"] == 16 * step and "train" in extra["clock"]
        self.wait()
        self.events.append(("save", step))
        self.documents[step] = extra
        self.under_way = step

    def wait(self) -> None:
        if (step := self.under_way) is not None:
            self.under_way = None
            self.outcomes.append(
                SimpleNamespace(step=step, problem=self.unsavable.get(step), seconds=0.1)
            )
            if step not in self.unsavable:
                self.saved.append(step)

    def ended(self) -> list[SimpleNamespace]:
        if not self.slow:
            self.wait()
        ended, self.outcomes = self.outcomes, []
        return ended

    @property
    def directory(self) -> str:
        return "run/checkpoints"

    def amend(self, step: int, **changes: Any) -> None:
        self.documents.setdefault(step, {}).update(changes)

    def evaluate(self, params: Any) -> Results:
        step = next((x for name, x in reversed(self.events) if name == "dispatch"), self.first)
        if step == self.interrupted_at:
            self.stop_request.reason = "SIGTERM"
            loop.interrupt(self.stop_request)
        return Results({"eval/x/loss": 1.0}, self.scored)

    def start(self, step: int) -> None:
        self.events.append(("start", step))

    def step(self, step: int, values: dict[str, float | None]) -> list[Finding]:
        self.values[step] = values
        self.events.append(("report", step))
        return self.found.get(step, [])

    def signals(self, step: int, signals: dict[str, np.ndarray]) -> None:
        assert signals.keys() == {"grad_norm/blocks", "attention_logit/blocks"}
        self.events.append(("signals", step))

    def results(self, step: int, *results: Any) -> list[Finding]:
        self.events.append(("eval", step))
        return []

    def items(self, step: int, items: Iterable[Any]) -> None:
        self.events.append(("items", (step, list(items))))

    def message(self, text: str) -> None:
        self.messages.append(text)

    def activity(self, text: str) -> nullcontext[None]:
        return nullcontext()

    def train(self, program: Program, workdir: Path, **changes: dict[str, Any]) -> bool:
        experiment = program.experiment
        parts = {"train": {"duration": self.num_steps}, "eval": {"every": 0}} | changes
        parts["monitor"] = {"signals_every": 0} | changes.get("monitor", {})
        for name, values in parts.items():
            part = replace(getattr(experiment, name), **values)
            experiment = replace(experiment, **{name: part})
        here: Any = self
        program = replace(program, experiment=experiment)
        run = loop.Run(
            stages=_stages(program, self),
            workdir=workdir,
            data=self,
            evaluators=[self.evaluate],
            saver=_saver(program, workdir, here, here),
            clock=Clock(),
            reporter=here,
            stop=self.stop_request,
            watchdog=Watchdog(None),
            is_evaluation_due=self.is_evaluation_due,
        )
        return loop.train(run, _Step(self.first), self.first)


def _saver(program: Program, workdir: Path, checkpoints: Any, reporter: Any) -> Saver:
    """One that saves in the folder of the run alone."""
    timeline, dog = program.experiment.timeline, Watchdog(None)
    return Saver(workdir, timeline, checkpoints, None, program.state, Clock(), reporter, dog)


def _stages(program: Program, compiled: Any) -> Stages:
    """A run of one stage, with its compiled step and probe."""
    stage = StageProgram(0, program.experiment.timeline.num_steps, num_pieces=1, program=program)
    for name in ("train_step", "probe"):  # where a cached property keeps its value
        vars(stage)[name] = getattr(compiled, name)
    return Stages((stage,))


class _Step(int):
    """A state that is only its step."""

    params = None

    def __add__(self, other: int) -> "_Step":
        return _Step(int(self) + other)


def test_a_step_is_reported_after_the_next_is_dispatched(program: Program, tmp_path: Path):
    """So the device never waits for the host; at an evaluation it has nothing to wait for."""
    recorder = Recorder(num_steps=4)
    assert recorder.train(program, tmp_path, eval={"every": 3}, checkpoint={"every": 0})
    assert recorder.events == [
        ("eval", 0),
        ("start", 0),
        ("dispatch", 1),
        ("dispatch", 2),
        ("report", 1),
        ("dispatch", 3),
        ("report", 2),
        ("report", 3),
        ("eval", 3),
        ("dispatch", 4),
        ("report", 4),
        ("eval", 4),
        ("save", 4),
    ]


@pytest.mark.parametrize(
    ("every", "expected"),
    [(0, [7]), (1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6, 7]), (7, [7]), (9, [7])],
)
def test_saves_and_evaluations_come_at_their_interval_and_at_the_end(
    program: Program, tmp_path: Path, every: int, expected: list[int]
):
    recorder = Recorder(num_steps=7)
    recorder.train(program, tmp_path, checkpoint={"every": every}, eval={"every": every})
    assert recorder.saved == expected
    assert [step for name, step in recorder.events if name == "eval"] == [0, *expected]
    assert list(recorder.values) == list(range(1, 8))


def test_the_items_of_the_last_evaluation_are_kept(program: Program, tmp_path: Path):
    recorder = Recorder(num_steps=4, scored=Items({}, [], [{"item": "a"}]))
    recorder.train(program, tmp_path, eval={"every": 2})
    kept = [event for event in recorder.events if event[0] == "items"]
    assert kept == [("items", (4, [{"item": "a"}]))]


SKIPPED = {"skipped": 1.0, "loss": float("nan")}


def test_a_skipped_step_is_told_with_its_samples_and_the_run_goes_on(
    program: Program, tmp_path: Path
):
    outlier = {"skipped": 1.0, "loss": 70.5, "grad_norm": 12.0}
    recorder = Recorder(num_steps=5, bad={2: SKIPPED, 3: outlier})
    assert recorder.train(program, tmp_path, checkpoint={"every": 2})
    assert recorder.saved == [2, 4, 5]
    assert [text for text in recorder.messages if "skipped" in text] == [
        "warning: skipped step 2, samples 16 to 31: loss nan, gradient norm 1",
        "warning: skipped step 3, samples 32 to 47: loss 70.5, gradient norm 12",
    ]


def test_too_many_skipped_steps_in_a_row_end_the_run(program: Program, tmp_path: Path):
    """A step that is taken begins the count anew."""
    recorder = Recorder(num_steps=9, bad={step: SKIPPED for step in (1, 2, 4, 5, 6, 7)})
    with pytest.raises(loop.NonFinite, match="3 steps in a row were skipped, up to step 6"):
        recorder.train(program, tmp_path, train={"duration": 9, "on_bad_step": Skip(max_in_row=3)})
    assert recorder.saved == [2, 4]


def test_each_step_reads_its_own_samples(program: Program, tmp_path: Path):
    """The position in the data is the step: nothing else has to be kept for a resume."""
    whole, resumed = Recorder(num_steps=5), Recorder(num_steps=5, first=2, saved=[2])
    for recorder in (whole, resumed):
        recorder.train(program, tmp_path)
    assert [list(s) for s in whole.samples] == [list(range(16 * i, 16 * i + 16)) for i in range(5)]
    np.testing.assert_array_equal(resumed.samples, whole.samples[2:])


def test_a_resumed_run_goes_on_where_it_was(program: Program, tmp_path: Path):
    recorder = Recorder(num_steps=4, first=2, saved=[2])
    assert recorder.train(program, tmp_path)
    assert recorder.events[:2] == [("start", 2), ("dispatch", 3)]  # step 2 was evaluated before
    assert recorder.saved == [2, 4]


@pytest.mark.parametrize("first", [4, 6])
def test_a_finished_run_does_nothing(program: Program, tmp_path: Path, first: int):
    recorder = Recorder(num_steps=4, first=first, saved=[first])
    assert recorder.train(program, tmp_path)
    assert recorder.saved == [first] and not recorder.values


def test_a_run_of_no_steps_evaluates_and_saves(program: Program, tmp_path: Path):
    recorder = Recorder(num_steps=0)
    assert recorder.train(program, tmp_path)
    assert recorder.events == [("eval", 0), ("start", 0), ("save", 0)]


@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_asked_to_stop_it_saves_and_leaves(program: Program, tmp_path: Path, stop_at: int):
    """Without an evaluation that is due, such as that of the last step: the time may be short."""
    recorder = Recorder(num_steps=5, stop_at=stop_at)
    assert not recorder.train(program, tmp_path, checkpoint={"every": 0}, eval={"every": 3})
    assert recorder.saved == [stop_at]
    assert list(recorder.values) == list(range(1, stop_at + 1))
    evaluated = [step for name, step in recorder.events if name == "eval"]
    assert evaluated == ([0, 3] if stop_at == 5 else [0])
    assert recorder.documents[stop_at]["evaluation_due"] is (stop_at in (3, 5))


@pytest.mark.parametrize("step", [0, 3, 5])
def test_asked_in_an_evaluation_it_saves_and_the_next_session_evaluates_first(
    program: Program, tmp_path: Path, step: int
):
    recorder = Recorder(num_steps=5, interrupted_at=step)
    changes: dict[str, Any] = {"checkpoint": {"every": 0}, "eval": {"every": 3}}
    assert not recorder.train(program, tmp_path, **changes)
    assert recorder.saved == [step] and recorder.documents[step]["evaluation_due"]
    assert ("eval", step) not in recorder.events
    assert any(f"evaluation of step {step} is left out" in text for text in recorder.messages)

    later = Recorder(num_steps=5, first=step, saved=[step], is_evaluation_due=True)
    assert later.train(program, tmp_path, **changes)
    assert later.events[:2] == [("eval", step), ("start", step)]
    assert later.documents[step]["evaluation_due"] is False
    evaluated = {step for name, step in recorder.events + later.events if name == "eval"}
    assert evaluated == {0, 3, 5}


def test_a_step_is_told_as_saved_once_it_is(program: Program, tmp_path: Path):
    recorder = Recorder(num_steps=5, slow=True)
    told: dict[str, list[int]] = {}
    recorder.message = lambda text: told.setdefault(text, list(recorder.saved))  # pyright: ignore
    assert recorder.train(program, tmp_path)
    assert told == {"saved step 2": [2], "saved step 4": [2, 4], "saved step 5": [2, 4, 5]}


def test_after_a_failed_save_training_goes_on_and_tries_again(program: Program, tmp_path: Path):
    full = "No space left on device"
    recorder = Recorder(num_steps=7, unsavable={2: full, 4: full})
    assert recorder.train(program, tmp_path)
    assert recorder.saved == [6, 7]
    assert [text for text in recorder.messages if "save" in text] == [
        "warning: step 2 is not saved: No space left on device",
        "warning: step 4 is not saved: No space left on device",
        "saved step 6",
        "saved step 7",
    ]


@pytest.mark.parametrize(
    ("unsavable", "last", "message"),
    [
        ([5], 5, r"step 5 could not be saved: full\. Step 4 is the newest in run/checkpoints"),
        ([4, 5], 5, r"2 saves in a row, up to step 5, could not be saved: full\. Step 2 is"),
        ([2, 4, 6], 6, "3 saves in a row, up to step 6, .* There is no checkpoint"),
    ],
)
@pytest.mark.parametrize("slow", [False, True])
def test_the_run_ends_when_the_last_save_fails_or_several_in_a_row(
    program: Program, tmp_path: Path, unsavable: list[int], last: int, message: str, slow: bool
):
    num_steps = 5 if last == 5 else 9
    recorder = Recorder(num_steps, unsavable=dict.fromkeys(unsavable, "full"), slow=slow)
    with pytest.raises(NotSaved, match=message):
        recorder.train(program, tmp_path)
    assert recorder.events[-1] == ("save", last)


EMPTY = {"weight": 0.0, "loss": float("nan"), "grad_norm": 0.0}


def test_a_batch_in_which_nothing_counts_is_told_and_is_no_skipped_step(
    program: Program, tmp_path: Path
):
    """However many there are; what is unknown of them is None."""
    bad = {1: EMPTY, 2: SKIPPED, 3: EMPTY, 4: SKIPPED, 5: EMPTY}
    recorder = Recorder(num_steps=5, bad=bad)
    assert recorder.train(
        program, tmp_path, train={"duration": 5, "on_bad_step": Skip(max_in_row=3)}
    )
    assert recorder.values[1] == {"weight": 0.0, "loss": None, "grad_norm": 0.0}
    told = [text for text in recorder.messages if "nothing counts" in text]
    assert told[1:] == [  # the first, the second, the fourth, ... of them
        "warning: step 3 changes no weights: nothing counts in samples 32 to 47; so far 2 such "
        "steps",
    ]


def test_layers_are_looked_at_at_their_interval_and_reported_with_their_step(
    program: Program, tmp_path: Path
):
    recorder = Recorder(num_steps=4)
    recorder.train(program, tmp_path, monitor={"signals_every": 3}, checkpoint={"every": 0})
    steps = [event for event in recorder.events if event[0] not in ("eval", "start", "save")]
    assert steps == [
        ("dispatch", 1),
        ("dispatch", 2),
        ("report", 1),
        ("dispatch", 3),
        ("probe", None),
        ("report", 2),
        ("dispatch", 4),
        ("signals", 3),
        ("report", 3),
        ("report", 4),
    ]


def _finding(name: Any) -> Finding:
    return Finding(name, 1, 3, "It is bad.", "Nothing.", {})


def test_a_finding_ends_the_run_only_where_the_config_says_so(program: Program, tmp_path: Path):
    found = {3: [_finding("spike"), _finding("plateau")]}
    recorder = Recorder(num_steps=9, found=found)
    assert recorder.train(program, tmp_path / "a", monitor={"stop_on": ("divergence",)})
    recorder = Recorder(num_steps=9, found=found)
    with pytest.raises(loop.Alarm, match="step 4 is saved. monitor.stop_on names plateau: It is"):
        recorder.train(program, tmp_path / "b", monitor={"stop_on": ("plateau",)})
    assert recorder.saved[-1] == 4 == max(recorder.values)
    recorder = Recorder(num_steps=9, found=found)
    with pytest.raises(loop.Alarm):  # which is in no hurry: what is due at step 4 is evaluated
        changes: dict[str, Any] = {"monitor": {"stop_on": ("plateau",)}, "eval": {"every": 4}}
        recorder.train(program, tmp_path / "c", **changes)
    assert ("eval", 4) in recorder.events


def test_a_finding_of_the_last_step_is_no_reason_to_fail(program: Program, tmp_path: Path):
    recorder = Recorder(num_steps=3, found={3: [_finding("plateau")]})
    assert recorder.train(program, tmp_path, monitor={"stop_on": ("plateau",)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("every", [1, 4])
def test_a_step_that_is_not_finite_ends_the_run_unsaved(
    program: Program, tmp_path: Path, name: str, value: float, every: int
):
    recorder = Recorder(num_steps=9, bad={3: {name: value}})
    with pytest.raises(loop.NonFinite, match=f"{name} is {value} at step 3"):
        recorder.train(program, tmp_path, checkpoint={"every": every})
    assert all(step < 3 for step in recorder.saved)
    assert recorder.values[3][name] == pytest.approx(value, nan_ok=True)
    assert ("dispatch", 5) not in recorder.events


def test_trouble_with_the_data_reaches_the_user(program: Program, tmp_path: Path):
    """From the thread that reads ahead."""
    recorder = Recorder(num_steps=9)
    read = recorder.batch
    reads = itertools.count(1)

    def fail_at_four(samples: np.ndarray) -> dict[str, np.ndarray]:
        if next(reads) == 4:
            raise InputError("part.npy: ids beyond the vocabulary")
        return read(samples)

    recorder.batch = fail_at_four
    with pytest.raises(InputError, match="ids beyond the vocabulary"):
        recorder.train(program, tmp_path)
    assert [step for name, step in recorder.events if name == "dispatch"] == [1, 2, 3]


def test_a_trace_holds_the_steps_it_is_asked_for(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recorder = Recorder(num_steps=5)

    def note(name: str) -> Callable[..., None]:
        return lambda *_: recorder.events.append((name, None))

    monkeypatch.setattr(jax.profiler, "start_trace", note("trace"))
    monkeypatch.setattr(jax.profiler, "stop_trace", note("end of trace"))
    recorder.train(program, tmp_path, monitor={"profile": (2, 3)}, checkpoint={"every": 0})
    steps = [event for event in recorder.events if event[0] not in ("eval", "start", "save")]
    assert steps == [
        ("dispatch", 1),
        ("trace", None),
        ("dispatch", 2),
        ("report", 1),
        ("dispatch", 3),
        ("report", 2),
        ("report", 3),
        ("end of trace", None),
        ("dispatch", 4),
        ("dispatch", 5),
        ("report", 4),
        ("report", 5),
    ]


def test_the_whole_loop_makes_only_transfers_it_asks_for(
    program: Program, compiled: Any, fresh: TrainState, tmp_path: Path
):
    """With real parts, under JAX's guard. What it reports are the step's own values."""
    data = program.experiment.data.open(seed=0, limits=program.model.input_limits())
    sets: Any = program.experiment.data.open_evals(limits=program.model.input_limits())
    state = jax.device_put(fresh, jax.tree.map(lambda s: s.sharding, program.state))
    probe, expected, signals_of = program.compile_probe(), {}, {}
    for step in range(1, 6):
        batch = data.batch(np.arange(16 * (step - 1), 16 * step))
        batch = program.layout.put(batch, 16)
        state, metrics = compiled(state, batch)
        signals = metrics.pop("signals") | probe(state.params, batch)
        expected[step] = {f"train/{name}": float(value) for name, value in metrics.items()}
        signals_of[step] = {
            f"signals/{name}": to_numbers(np.asarray(x)) for name, x in signals.items()
        }

    state = jax.device_put(fresh, jax.tree.map(lambda s: s.sharding, program.state))
    held_out = HeldOut(program.setting(data, sets))
    held_out.compile()
    stages = _stages(program, SimpleNamespace(train_step=compiled, probe=probe))
    clock, progress = Clock(), Progress(5, is_shown=False)
    writers = open_writers(tmp_path, print, resume_step=None, tensorboard=False)
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep_last=2)
    reporter = Reporter(work_of(stages), writers, progress, clock, every=1)
    run = loop.Run(
        stages=stages,
        workdir=tmp_path,
        data=data,
        evaluators=[held_out],
        saver=_saver(program, tmp_path, checkpoints, reporter),
        clock=clock,
        reporter=reporter,
        stop=StopRequest(),
        watchdog=Watchdog(None),
    )
    with jax.transfer_guard("disallow"), writers:
        assert loop.train(run, state, 0)
    run.saver.end()
    lines = read_lines(tmp_path / "metrics.jsonl")
    reported = {line["step"]: line for line in lines if "train/loss" in line}
    assert list(reported) == list(expected)
    for step, values in expected.items():
        assert {name: reported[step][name] for name in values} == values
    lines = read_lines(tmp_path / "signals.jsonl")
    assert [line.pop("step") for line in lines] == [2, 4]
    assert [line | {"time": 0} for line in lines] == [signals_of[s] | {"time": 0} for s in (2, 4)]
    assert checkpoints.steps() == [4, 5]
