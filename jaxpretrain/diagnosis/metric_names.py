"""Which of a run's metrics are what: evaluation sets, tasks, and which way they improve."""

from __future__ import annotations

import math

from jaxpretrain.diagnosis.history import History
from jaxpretrain.diagnosis.statistics import trend

_LOWER_IS_BETTER = ("loss", "perplexity", "bits_per_byte", "bpb", "error")
_STDERR = "_stderr"
_UNTRAINED = "_random_init"  # of an encoder that never learns; there to compare with


def perplexity(loss: float) -> float:
    """The perplexity of a loss in nats a token; infinite where no float holds it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def lower_is_better(name: str) -> bool:
    """Whether a metric such as `eval/sotu/loss` improves when it falls."""
    return name.rpartition("/")[2].endswith(_LOWER_IS_BETTER)


def evaluation_sets(history: History) -> list[str]:
    """Sets with a loss: `sotu` where there is `eval/sotu/loss`."""
    return [name.split("/", 1)[1][: -len("/loss")] for name in history.names("eval/", "/loss")]


def task_metrics(history: History) -> list[str]:
    """Names of the metrics that come with a standard error, such as `eval/arc_easy/accuracy`."""
    names = [name[: -len(_STDERR)] for name in history.names("eval/", _STDERR)]
    return [name for name in names if not name.endswith(_UNTRAINED)]


def standard_error(name: str) -> str:
    """The name of the standard error of a metric."""
    return name + _STDERR


def improvements(history: History, first: float) -> dict[str, float]:
    """Evaluation curve -> probability of so good a trend since step `first`, were there none.

    Curves of fewer than four points since then say nothing and are left out.
    """
    found = {}
    for name in history.names("eval/"):
        curve = history[name].finite.between(first, float("inf"))
        line = None if name.endswith(_STDERR) else trend(curve.steps, curve.values)
        if line is not None:
            found[name] = line.falls if lower_is_better(name) else line.rises
    return found
