import math
from collections.abc import Iterable
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from jaxpretrain.config.durations import Pace
from jaxpretrain.diagnosis.clock import Clock
from jaxpretrain.diagnosis.history import History, Series
from jaxpretrain.diagnosis.intent import TrainingPlan
from jaxpretrain.diagnosis.watch import Watch
from jaxpretrain.monitor import reporter as reporter_module
from jaxpretrain.monitor.reporter import Hosts, Reporter, Work, num_left, spread
from jaxpretrain.parallel import distributed

TOTAL = 20


class Sink:
    """Stands for the writers and the terminal."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, Any]]] = []
        self.texts_: list[tuple[int, dict[str, str]]] = []
        self.updates: list[tuple[int, bool]] = []
        self.revised: list[dict[str, Any]] = []
        self.messages: list[str] = []

    def scalars(self, step: int, scalars: dict[str, Any]) -> None:
        self.lines.append((step, scalars))

    def texts(self, step: int, texts: dict[str, str]) -> None:
        self.texts_.append((step, texts))

    def items(self, items: Iterable[dict[str, Any]]) -> None:
        self.items_ = list(items)

    def update(self, step: int, metrics: dict[str, Any] | None = None) -> None:
        self.updates.append((step, metrics is not None))

    def revise(self, metrics: dict[str, Any]) -> None:
        self.revised.append(metrics)

    def message(self, text: str) -> None:
        self.messages.append(text)


class Time:
    """A clock's source that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.clock = Clock(lambda: self.now)

    @contextmanager
    def passing(self, part: Any, seconds: float):
        with self.clock.measure(part):
            self.now += seconds
            yield


def _work(**changes: Any) -> Work:
    fields: dict[str, Any] = {
        "unit": "tokens",
        "units_per_example": 10,
        "pace": Pace(10),
        "flops_per_unit": lambda step, causal: 6e4 if causal else 9e4,
        "peak_flops": 1e8,
        "total_steps": TOTAL,
        "eval_every": 8,
        "save_every": 0,
        "num_devices": 1,
        "num_parameters": 7,
    }
    return Work(**(fields | changes))


def _reporter(time: Time, every: int = 1, **changes: Any) -> tuple[Reporter, Sink]:
    sink: Any = Sink()
    return Reporter(_work(**changes), sink, sink, time.clock, every), sink


@pytest.mark.parametrize("every", [0, 1, 3, 8, 20, 33])
@pytest.mark.parametrize("step", [0, 1, 7, 8, 19, 20, 25])
def test_what_is_left_is_what_the_loop_will_do(every: int, step: int):
    """At multiples of the interval, and at the end."""
    to_come = [
        s for s in range(step + 1, TOTAL + 1) if s == TOTAL or (every > 0 and s % every == 0)
    ]
    assert num_left(step, TOTAL, every) == len(to_come)


@pytest.mark.parametrize(
    ("every", "expected"),
    [(1, list(range(1, TOTAL + 1))), (8, [1, 8, 16, 20]), (0, [1, 20]), (50, [1, 20])],
)
def test_the_first_the_last_and_each_interval_are_written(every: int, expected: list[int]):
    reporter, sink = _reporter(Time(), every)
    reporter.start(0)
    for step in range(1, TOTAL + 1):
        reporter.step(step, {"loss": 1.0})
    assert [step for step, _ in sink.lines] == expected
    assert sink.updates == [(step, step in expected) for step in range(1, TOTAL + 1)]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_always_written(value: float):
    """It ends the run: whoever looks for the reason finds it."""
    reporter, sink = _reporter(Time(), every=10)
    reporter.start(0)
    reporter.step(3, {"loss": value, "grad_norm": 1.0})
    ((step, metrics),) = sink.lines
    assert step == 3
    assert metrics["train/loss"] == pytest.approx(value, nan_ok=True)
    assert math.isnan(metrics["train/perplexity"]) == math.isnan(value)


def test_values_keep_their_names_and_units_are_counted():
    reporter, sink = _reporter(Time(), unit="images")
    reporter.start(0)
    reporter.step(4, {"loss": 2.0, "grad_norm": 0.5})
    ((_, metrics),) = sink.lines
    assert (metrics["train/loss"], metrics["train/grad_norm"]) == (2.0, 0.5)
    assert metrics["train/images"] == 400 and "train/perplexity" not in metrics
    tokens, shown = _reporter(Time())
    tokens.step(4, {"loss": 2.0})
    assert shown.lines[0][1]["train/perplexity"] == pytest.approx(math.exp(2))
    assert "perf/images_per_second" in metrics and "train/tokens" not in metrics


def test_speed_and_mfu_are_of_training_time_alone():
    """Ten steps of 0.1 s, a tenth of it waiting for data, with an evaluation in between."""
    time = Time()
    reporter, sink = _reporter(time, every=10)
    reporter.start(0)
    for step in range(1, 11):
        with time.passing("data_wait", 0.01), time.passing("other", 0):
            pass
        with time.passing("train", 0.09):
            pass
        if step == 5:
            with time.passing("eval", 30):
                pass
        reporter.step(step, {"loss": 1.0})
    _, metrics = sink.lines[-1]
    assert metrics["perf/tokens_per_second"] == pytest.approx(1000)
    assert metrics["perf/mfu"] == pytest.approx(10 * 6e6 / 1e8)  # 10 steps a second
    assert metrics["perf/mfu_full_attention"] == pytest.approx(10 * 9e6 / 1e8)
    assert metrics["perf/data_wait_fraction"] == pytest.approx(0.1)
    # Ten steps, and evaluations at 16 and 20 as long as the one so far.
    assert metrics["perf/eta_seconds"] == pytest.approx(10 * 0.1 + 2 * 30)
    assert metrics["time/eval_seconds"] == pytest.approx(30)
    parts = [v for name, v in metrics.items() if name.startswith("time/")]
    assert sum(parts) == pytest.approx(time.now)


def test_the_speed_that_is_shown_follows_each_step_until_the_second_report():
    """The first step takes ten times as long as the others."""
    time = Time()
    reporter, sink = _reporter(time, every=5, eval_every=0)
    reporter.start(0)
    for step in range(1, 10):
        with time.passing("train", 1.0 if step == 1 else 0.1):
            pass
        reporter.step(step, {"loss": 1.0})
    rates = [shown["perf/tokens_per_second"] for shown in sink.revised]
    assert rates == pytest.approx([100 * n / (0.9 + 0.1 * n) for n in (2, 3, 4)])
    assert sink.revised[-1]["perf/eta_seconds"] == pytest.approx(16 * 1.3 / 4)


def test_mfu_is_absent_where_the_peak_is_unknown():
    reporter, sink = _reporter(Time(), peak_flops=None)
    reporter.start(0)
    reporter.step(1, {"loss": 1.0})
    assert not {"perf/mfu", "perf/mfu_full_attention"} & sink.lines[0][1].keys()


def test_a_resumed_run_is_not_credited_with_earlier_steps():
    time = Time()
    time.clock.restore({"train": 1000.0})
    reporter, sink = _reporter(time)
    reporter.start(10)
    with time.passing("train", 0.5):
        pass
    reporter.step(11, {"loss": 1.0})
    ((_, metrics),) = sink.lines
    assert metrics["perf/tokens_per_second"] == pytest.approx(200)
    assert metrics["train/tokens"] == 1100
    assert metrics["perf/data_wait_fraction"] == 0


def test_results_are_written_and_shown_without_the_unknown():
    reporter, sink = _reporter(Time())
    scalars = {"eval/sotu/loss": 2.5, "eval/sotu/bits_per_byte": None, "eval/./own.jsonl/acc": 0.25}
    scalars |= {"eval/sotu/perplexity": 12.18249, "eval/digits/probe_10shot": 0.7734}
    scalars |= {"eval/digits/probe_10shot_stderr": 0.0211}
    scalars |= {"eval/digits/probe_10shot_random_init": 0.375}
    reporter.results(1000, scalars, {"samples/0": "Fellow|\n citizens"}, {})
    assert sink.lines == [(1000, scalars)]
    assert sink.texts_ == [(1000, {"samples/0": "Fellow|\n citizens"})]
    assert sink.messages == [
        "eval at step 1,000\n"
        "  sotu        loss 2.5000, perplexity 12.182\n"
        "  ./own.jsonl acc 0.2500\n"
        "  digits      10-shot probe 77.3 % +- 2.1, random 37.5",
        "sample at step 1,000: Fellow| citizens",
    ]


def test_items_are_kept_without_their_texts():
    reporter, sink = _reporter(Time())
    reporter.items(20, [{"task": "a", "item": "0", "continuations": [" x"]}])
    assert sink.items_ == [{"step": 20, "task": "a", "item": "0"}]


def test_each_session_leaves_a_mark_with_its_devices():
    sink: Any = Sink()
    sink.hparams = lambda config: None
    reporter = Reporter(_work(num_devices=8), sink, sink, Time().clock, 1)
    reporter.begin(5, {})
    mark = {"run/num_devices": 8, "run/parameters": 7, "run/tokens": TOTAL * 100}
    assert sink.lines == [(5, mark)]


def test_findings_are_said_and_handed_to_the_loop():
    total = 400
    plan = TrainingPlan(total, [("warmup", 0), ("decay", 2)], lambda s: 0 * np.asarray(s) + 1e-3)
    sink: Any = Sink()
    work = _work(total_steps=total)
    reporter = Reporter(work, sink, sink, Time().clock, 1, Watch(plan, now=lambda: 0.0))
    reporter.start(0)
    found = [reporter.step(step, {"loss": 3.0, "grad_norm": 1.0}) for step in (1, 2)]
    found.append(reporter.step(3, {"loss": math.nan, "grad_norm": 1.0}))
    assert [[finding.name for finding in new] for new in found] == [
        [],
        ["warmup_ended"],
        ["not_finite"],
    ]
    assert [message.split(".")[0] for message in sink.messages] == [
        "note: warm-up ended",
        "error: not finite",
    ]


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize(("rate", "jumps"), [(1e-3, False), (3.66e-2, True)])
def test_the_first_step_of_a_session_is_judged_and_reported_where_it_jumps(
    every: int, rate: float, jumps: bool
):
    """A finished run that is extended: the watch knows where the session begins."""
    plan = TrainingPlan(TOTAL, [], lambda s: 0 * np.asarray(s) + rate)
    steps, one = np.arange(1, 11), np.ones(10)
    columns = {"train/loss": 3 * one, "train/learning_rate": 1e-3 * one, "train/weight": 90 * one}
    past = {name: Series(steps, steps + 0.0, values) for name, values in columns.items()}
    past["run/num_devices"] = Series(np.array([0]), np.array([0.0]), np.array([1.0]))
    sink: Any = Sink()
    sink.hparams = lambda config: None
    watch = Watch(plan, History(past), now=lambda: 0.0)
    reporter = Reporter(_work(), sink, sink, Time().clock, every, watch)
    reporter.begin(10, {})
    reporter.start(10)
    values = {"loss": 3.0, "grad_norm": 1.0, "learning_rate": rate, "weight": 90.0}
    found = [finding.name for finding in reporter.step(11, values)]
    assert found == (["resume_discontinuity"] if jumps else [])
    assert [step for step, _ in sink.lines] == [10] + [11] * (jumps or every == 1)
    said = [message for message in sink.messages if message.startswith(("note", "warning"))]
    # Nothing of the past's rates, which followed another plan.
    assert ["goes from 0.001 to 0.0366" in message for message in said] == [True] * jumps
    assert reporter.step(12, values) == []


def test_the_slowest_process_is_compared_with_the_usual_one():
    own = {0: 0.1, 1: 0.12, 2: 0.11, 3: 0.4}
    found = spread(own, step_seconds=0.5)
    assert found == {"perf/slowest_host": 3.0, "perf/host_spread": pytest.approx(0.29 / 0.5)}
    assert spread({0: 0.1}, step_seconds=0.5) == {}


def test_a_process_that_is_alone_compares_nothing():
    assert Hosts(Clock()).compare(10) == {}


@pytest.fixture
def board(monkeypatch):
    """What processes tell; the other one spends 0.6 s a step on its own."""
    board = {1: "0.6"}
    monkeypatch.setattr(distributed, "has_others", lambda: True)
    monkeypatch.setattr(distributed, "publish", lambda name, value: board.__setitem__(0, value))
    monkeypatch.setattr(distributed, "published", lambda name: board)
    return board


def test_own_time_is_what_is_not_spent_waiting_for_devices(board):
    """A step takes a second, 0.1 for data, 0.2 to hand it over, 0.7 until the devices are done."""
    now = 0.0

    def time():
        return now

    clock = Clock(time)
    compared, found = Hosts(clock, time), {}
    assert compared.compare(0) == {}
    for step in range(1, 31):
        with clock.measure("data_wait"):
            now += 0.1
        with clock.measure("train"):
            now += 0.2
            with clock.waiting():
                now += 0.7
        if metrics := compared.compare(step):
            found[step] = metrics
    assert float(board[0]) == pytest.approx(0.3)
    assert all(apart >= reporter_module.SECONDS_APART for apart in found)
    assert 2 <= len(found) <= 3
    assert found[max(found)] == {
        "perf/slowest_host": 1.0,
        "perf/host_spread": pytest.approx(0.3),
    }
