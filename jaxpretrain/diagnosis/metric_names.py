"""The names of metrics: evaluation sets, tasks, and the direction of improvement."""

import math

from jaxpretrain.diagnosis.history import History
from jaxpretrain.diagnosis.statistics import trend

_LOWER_IS_BETTER = ("loss", "perplexity", "bits_per_byte", "bpb", "error")
_STDERR = "_stderr"
_UNTRAINED = "_random_init"  # metrics of an untrained encoder, for comparison


def perplexity(loss: float) -> float:
    """Returns the perplexity of a loss in nats a token; infinite where no float holds it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def bits_per_byte(nats: float, num_bytes: float) -> float | None:
    """Returns the bits per UTF-8 byte of a text with a cost in nats; None where it has no bytes."""
    return nats / math.log(2) / num_bytes if num_bytes else None


def lower_is_better(name: str) -> bool:
    """Returns whether a metric such as `eval/sotu/loss` improves when it falls."""
    return name.rpartition("/")[2].endswith(_LOWER_IS_BETTER)


def evaluation_sets(history: History) -> list[str]:
    """Returns the evaluation sets that have a loss, such as `sotu` of `eval/sotu/loss`."""
    return [name.split("/", 1)[1][: -len("/loss")] for name in history.names("eval/", "/loss")]


def task_metric_names(history: History) -> list[str]:
    """Returns the names of metrics with a standard error, such as `eval/arc_easy/accuracy`."""
    names = [name[: -len(_STDERR)] for name in history.names("eval/", _STDERR)]
    return [name for name in names if not name.endswith(_UNTRAINED)]


def standard_error_name(name: str) -> str:
    """Returns the name of the standard error of a metric."""
    return name + _STDERR


def untrained(name: str) -> str:
    """Returns the name of a metric of an untrained model, beside that of the trained one."""
    return name + _UNTRAINED


def is_companion(name: str) -> bool:
    """Returns whether a metric goes with another: its error, or its value without training."""
    return name.endswith((_STDERR, _UNTRAINED))


def improvements(history: History, first: float) -> dict[str, float]:
    """Returns for each evaluation curve the probability of its trend if there is none.

    The trend is that since step `first`; curves with fewer than four points since then are left
    out.
    """
    found = {}
    for name in history.names("eval/"):
        curve = history[name].finite.between(first, float("inf"))
        line = None if name.endswith(_STDERR) else trend(curve.steps, curve.values)
        if line is not None:
            found[name] = line.falls if lower_is_better(name) else line.rises
    return found
