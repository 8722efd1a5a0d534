"""Findings about speed: waiting for data, slow or uneven steps, a slow host."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jaxpretrain.diagnosis.findings import Finding
from jaxpretrain.diagnosis.history import History
from jaxpretrain.diagnosis.intent import TrainingPlan
from jaxpretrain.diagnosis.remaining import spent

LATE = 16  # fewest last reports that show the present speed
SUSTAINED = 30.0  # fewest seconds of training in them, because machines stumble now and then
WAIT_FRACTION = 0.1  # least share of the time that steps wait for data
SLOWER = 1.5  # least ratio of the present time of a step to the time before
UNEVEN = 3.0  # ratio to the usual time above which a step is slow
UNEVEN_COST = 0.1  # least share of the training time that slow steps cost
HOST_ROWS = 4  # number of last comparisons of the hosts that count
HOST_SHARE = 0.75  # least share of them that must name the same host
HOST_SPREAD = 0.1  # least part of a step that this host must cost


def input_bound(history: History, plan: TrainingPlan) -> Iterator[Finding]:
    """Finds steps that wait for data."""
    waits = history["perf/data_wait_fraction"].finite
    pace = _pace(history)
    late = waits.between(pace.late_since, history.step) if pace.late_since else waits[:0]
    share = float(np.median(late.values)) if len(late) else 0.0
    if share < WAIT_FRACTION:
        return
    yield Finding(
        "input_bound",
        int(late.steps[0]),
        int(late.steps[-1]),
        f"Training waits for data during {share:.0%} of its time.",
        "Put the data on a faster disk or nearer, give the host more cores, or read larger "
        f"pieces; without the wait the run would be {1 / max(1 - share, 0.01):.2g} times as "
        "fast.",
        {"share": share},
        signal="perf/data_wait_fraction",
    )


def slow_steps(history: History, plan: TrainingPlan) -> Iterator[Finding]:
    """Finds steps that take much longer than before, without the time they wait for data."""
    pace = _pace(history)
    if not pace.late_since:
        return
    is_late = pace.steps >= pace.late_since
    before = pace.computing[~is_late]
    if len(before) < 2 * LATE:
        return
    usual, now = np.median(before), np.median(pace.computing[is_late])
    if now < SLOWER * usual:
        return
    yield Finding(
        "slow_steps",
        pace.late_since,
        int(pace.steps[-1]),
        f"Steps take {now / usual:.2f} times as long as before, data wait aside.",
        "Look at the other work on these machines, at temperatures and clocks, and at the "
        "network; a trace (monitor.profile) shows where the time goes.",
        {"factor": float(now / usual)},
        signal=f"perf/{history.unit}_per_second",
    )


def uneven_steps(history: History, plan: TrainingPlan) -> Iterator[Finding]:
    """Finds a few slow steps that cost much of the time."""
    pace = _pace(history)
    steps, seconds = pace.steps, pace.computing
    if len(steps) < 3 * LATE or pace.seconds.sum() < SUSTAINED:
        return
    usual = float(np.median(seconds))
    slow = seconds > UNEVEN * usual
    cost = float(np.sum((seconds[slow] - usual) * pace.units[slow]) / np.sum(pace.seconds))
    if cost < UNEVEN_COST:
        return
    yield Finding(
        "uneven_steps",
        int(steps[slow][0]),
        int(steps[slow][-1]),
        f"{slow.mean():.1%} of the reports took more than {UNEVEN:g} times the usual time; "
        f"they cost {cost:.0%} of the training time.",
        "Look for a straggling host, for other work on these machines, or for what runs at "
        "the interval of these steps.",
        {"share": float(slow.mean()), "cost": cost},
        signal=f"perf/{history.unit}_per_second",
        severity="info",
    )


def slow_host(history: History, plan: TrainingPlan) -> Iterator[Finding]:
    """Finds a process for which the other processes wait."""
    spreads, slowest = history["perf/host_spread"], history["perf/slowest_host"]
    late = spreads[-HOST_ROWS:]
    if len(late) < HOST_ROWS or late.times[-1] - late.times[0] < SUSTAINED:
        return
    hosts, counts = np.unique(slowest.values[-HOST_ROWS:], return_counts=True)
    host, share = int(hosts[np.argmax(counts)]), float(counts.max() / HOST_ROWS)
    cost = float(np.median(late.values))
    if share < HOST_SHARE or cost < HOST_SPREAD:
        return
    yield Finding(
        "slow_host",
        int(late.steps[0]),
        int(late.steps[-1]),
        f"Process {host} keeps the others waiting for {cost:.0%} of each step: it takes that "
        "much longer to read its data and to hand its steps to its devices.",
        "Look at that machine: other work on it, its disk and its network. Its accelerators "
        "are not what is seen here; slow ones make the steps of all processes slow alike.",
        {"host": host, "cost": cost, "share": share},
        signal="perf/host_spread",
        subject=f"process {host}",
    )


@dataclass(frozen=True)
class _Pace:
    """The time between neighbouring reports of one session."""

    steps: np.ndarray
    """The step of the later report."""
    units: np.ndarray
    """The tokens or images between the two reports."""
    seconds: np.ndarray
    """The seconds of training between the two reports."""
    computing: np.ndarray
    """The seconds for a token or image, without waiting for data."""

    @property
    def late_since(self) -> int:
        """The first step of the last reports that took long enough together; 0 without any."""
        rows = np.flatnonzero(np.cumsum(self.seconds[::-1]) >= SUSTAINED)
        if not len(rows) or len(self.steps) < LATE:
            return 0
        return int(self.steps[-max(int(rows[0]) + 1, LATE)])


def _pace(history: History) -> _Pace:
    rows = spent(history)
    waits = history["time/data_wait_seconds"].finite
    waited = np.interp(rows.steps, waits.steps, waits.values) if len(waits) else 0 * rows.training
    units, seconds = np.diff(rows.units), np.diff(rows.training)
    computing = (seconds - np.diff(waited)) / np.maximum(units, 1)
    same_session = np.diff(np.searchsorted(history.resumed, rows.steps)) == 0
    known = (units > 0) & same_session
    return _Pace(rows.steps[1:][known], units[known], seconds[known], computing[known])
