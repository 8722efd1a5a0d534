"""Metrics from likelihoods: pure functions, one formula each.

Source: allenai/OLMo `olmo/eval/downstream.py`. Lengths of continuations leave out the first
character, the leading space, as OLMo's trainer does; names that end in `_v2` count it, as OLMES
does. Choices are ranked by

    acc         log p(continuation | context)
    len_norm    the same by character of the continuation
    pmi_dc      log p(continuation | context) / log p(continuation | unconditional context)
    acc_uncond  their difference (OLMES; the pointwise mutual information)

The first of equals wins. In `pmi_dc` both logarithms are negative, so that the *smallest* ratio is
the choice that the question makes likelier most.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxpretrain.evals.tasks.task import Item, Metric, Task

NUM_ITEMS = "num_items"
NUM_TRUNCATED = "num_truncated"
"""The number of prompts that lost their beginning."""
NUM_LEFT_OUT = "num_left_out"
"""The number of items left out because a continuation alone is longer than the context."""
RANDOM = "random"
"""The accuracy of guessing: the mean of 1 / choices."""


@dataclass(frozen=True)
class Scored:
    """An item with the log-likelihoods of its choices, in nats."""

    item: Item
    conditional: np.ndarray  # [c]
    unconditional: np.ndarray | None = None  # [c]; None: there is no such context

    def rankings(self) -> dict[str, np.ndarray]:
        """Returns a score of each choice [c] for each accuracy; the largest is chosen."""
        texts = [choice.continuation for choice in self.item.choices]
        num_chars = np.array([len(text) for text in texts], np.float64)
        rankings = {
            "acc": self.conditional,
            "len_norm": self.conditional / _without_space(num_chars),
            "len_norm_v2": self.conditional / num_chars,
        }
        if self.unconditional is not None:
            rankings["pmi_dc"] = -self.conditional / self.unconditional
            rankings["acc_uncond"] = self.conditional - self.unconditional
        return rankings

    def gold(self) -> dict[str, float]:
        """Returns the cost of the right answer, in nats by character and bits by UTF-8 byte."""
        text = self.item.choices[self.item.answer].continuation
        nats = -float(self.conditional[self.item.answer])
        bits = nats / math.log(2)
        num_bytes = len(text.encode())
        return {
            "ce_loss": nats / _without_space(len(text)),
            "ce_loss_v2": nats / len(text),
            "bpb": bits / _without_space(num_bytes, len(text[0].encode())),
            "bpb_v2": bits / num_bytes,
        }


def task_metrics(task: Task, scored: Sequence[Scored]) -> dict[str, float]:
    """Returns all metrics by name, standard errors too; `primary` is what its authors report."""
    gold = [s.gold() for s in scored]
    metrics = {name: _mean([g[name] for g in gold]) for name in gold[0]}
    if task.is_multiple_choice:
        metrics = _of_choices(task.metric, scored) | metrics
    return {"primary": metrics[task.metric], **metrics, NUM_ITEMS: len(scored)}


def f1(answers: Sequence[int], chosen: Sequence[int]) -> float:
    """Returns the harmonic mean of precision and recall of answer 0; 0 if it is never right."""
    pairs = list(zip(answers, chosen, strict=True))
    hits = sum(answer == choice == 0 for answer, choice in pairs)
    named = sum((answer == 0) + (choice == 0) for answer, choice in pairs)
    return 2 * hits / named if named else 0.0


def standard_error(accuracy: float, num_items: int) -> float:
    """Returns the standard error of the mean of `num_items` values of 0 or 1."""
    return math.sqrt(accuracy * (1 - accuracy) / max(1, num_items - 1))


def _of_choices(metric: Metric, scored: Sequence[Scored]) -> dict[str, float]:
    rankings = [s.rankings() for s in scored]
    answers = [s.item.answer for s in scored]
    metrics: dict[str, float] = {}
    for name in [name for name in rankings[0] if all(name in r for r in rankings)]:
        right = [int(r[name].argmax()) == a for r, a in zip(rankings, answers, strict=True)]
        metrics[name] = _mean(right)
        metrics[f"{name}_stderr"] = standard_error(metrics[name], len(scored))
    if metric == "f1":
        metrics["f1"] = f1(answers, [int(r["acc"].argmax()) for r in rankings])
    metrics[RANDOM] = _mean([1 / len(s.item.choices) for s in scored])
    for suffix in ("", "_v2"):
        # Shares of the choices, by what the task's own metric ranks them by.
        by = f"{metric}{suffix}" if metric == "len_norm" else metric
        by = by if by in metrics and by != "f1" else "acc"
        shares = [_log_softmax(r[by])[a] for r, a in zip(rankings, answers, strict=True)]
        metrics[f"soft{suffix}"] = _mean(np.exp(shares))
        metrics[f"soft_log{suffix}"] = _mean(shares)
    return metrics


def _without_space(length, first=1):
    """Returns a length without that of the first character; a lone character keeps its own."""
    return np.maximum(length - first, 1)


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max()
    return shifted - math.log(np.exp(shifted).sum())


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values))
