"""The answer of a sweep: each arm beside the control, with what the noise allows to say."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxpretrain.config.serialize import Document
from jaxpretrain.diagnosis.metric_names import lower_is_better
from jaxpretrain.sweeps.outcomes import (
    JudgedRuns,
    Outcome,
    are_losses_comparable,
    is_loss,
    judged,
    metric_names,
    read_outcome,
    shared_items,
)
from jaxpretrain.sweeps.statistics import (
    SIGNIFICANT,
    Difference,
    bootstrap_items,
    holm,
    independent_difference,
    paired_difference,
    seeds_for,
)
from jaxpretrain.sweeps.told import words

Verdict = Literal["better", "worse", "no_difference"]
SMALL = 1e-3
"""The part of the control's mean for which the number of seeds is told."""


def answer(document: Document, folder: Path) -> Document:
    """Returns the document of `sweep.json` with the metrics of the runs that are done.

    It gains `metric`, the name of the main one, `answer`, sentences, `warnings`, and for each arm
    `tuned`, the best values of its nuisance settings, and `metrics` by name: `mean`, `stderr` and
    `n`; beside the control also `difference`, `low`, `high`, `p`, `p_holm`, `verdict`, `pairs`,
    `detectable` (the smallest true difference that such runs show in four of five sweeps) and
    `seeds_for_0.1_percent`. None stands for what is not known. The verdict follows `p_holm`, which
    is corrected for the number of arms; `low` and `high` are not.

    Raises:
      InputError: a file of a run that is done cannot be read.
    """
    outcomes = {
        run["folder"]: read_outcome(folder / run["folder"])
        for arm in document["arms"]
        for run in arm["runs"]
        if run["state"] == "done"
    }
    is_fair = are_losses_comparable(document)
    names = metric_names(outcomes.values(), are_losses_comparable=is_fair)
    sides = {
        arm["name"]: judged(arm, document["seeds"], outcomes, names[0] if names else "")
        for arm in document["arms"]
    }
    metrics: dict[str, Document] = {name: {} for name in sides}
    for name in names:
        is_comparable = is_fair or not is_loss(name)
        found = _compared(name, sides, document["control"], is_comparable=is_comparable)
        for arm, result in found.items():
            metrics[arm][name] = result
    arms = [
        arm | {"tuned": sides[arm["name"]].tuned, "metrics": metrics[arm["name"]]}
        for arm in document["arms"]
    ]
    warnings = [side.warning for side in sides.values() if side.warning]
    for arm in document["arms"]:
        states = [run["state"] for run in arm["runs"]]
        if failed := states.count("failed"):
            warnings.append(f"{arm['name']}: {failed} of its {len(states)} runs failed")
        known = [outcomes[run["folder"]] for run in arm["runs"] if run["folder"] in outcomes]
        if lost := sum(not names or names[0] not in one.values for one in known):
            which = names[0] if names else "metric"
            warnings.append(f"{arm['name']}: {lost} of its runs ended without a finite {which}")
    document = document | {"metric": names[0] if names else None, "warnings": warnings}
    document["arms"] = arms
    return document | {"answer": words(document)}


def _compared(
    metric: str, sides: Mapping[str, JudgedRuns], control: str, *, is_comparable: bool
) -> dict[str, Document]:
    """Returns what is known about a metric in each arm that has it.

    Where it measures different things in the arms, nothing is tested: there is no `p_holm`.
    """
    known: dict[str, dict[int, Outcome]] = {}
    for arm, side in sides.items():
        if runs := {seed: run for seed, run in side.runs.items() if metric in run.values}:
            known[arm] = runs
    found = {arm: _mean([r.values[metric] for r in runs.values()]) for arm, runs in known.items()}
    others = [arm for arm in known if arm != control]
    base, number = known.get(control, {}), len(others)
    differences = {arm: _difference(metric, known[arm], base, number) for arm in others}
    tested = [arm for arm in others if is_comparable and differences[arm].n > 1]
    corrected = dict(zip(tested, holm([differences[arm].p for arm in tested]), strict=True))
    small = SMALL * abs(found[control]["mean"]) if base else 0.0
    for arm, difference in differences.items():
        p_holm = corrected.get(arm)
        found[arm] |= {
            "difference": _finite(difference.mean),
            "low": _finite(difference.low),
            "high": _finite(difference.high),
            "p": _finite(difference.p),
            "p_holm": p_holm,
            "verdict": _verdict(metric, difference.mean, p_holm),
            "pairs": difference.n,
            "detectable": _finite(difference.smallest),
            "seeds_for_0.1_percent": seeds_for(difference.sd, small, number)
            if arm in corrected and small
            else None,
        }
    return found


def _difference(
    metric: str, arm: Mapping[int, Outcome], control: Mapping[int, Outcome], comparisons: int
) -> Difference:
    """Returns the difference over the seeds that both have, with the noise of a task's items."""
    seeds = [seed for seed in arm if seed in control]
    ours, theirs = [arm[seed] for seed in seeds], [control[seed] for seed in seeds]
    difference = paired_difference(
        [run.values[metric] for run in ours], [run.values[metric] for run in theirs], comparisons
    )
    if len(seeds) < 2:
        return difference
    items = shared_items(metric, ours, theirs)
    if items is not None:
        return difference.wider(bootstrap_items(*items, seed=seeds[0]))
    errors = [run.errors[metric] for run in (*ours, *theirs) if metric in run.errors]
    if errors:  # seeds that agree by chance do not show the noise of the items
        error = math.sqrt(2) * float(np.mean(errors))
        return difference.wider(independent_difference(difference.mean, error))
    return difference


def _mean(values: Sequence[float]) -> dict[str, Any]:
    n = len(values)
    stderr = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else None
    return {"mean": float(np.mean(values)), "stderr": stderr, "n": n}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _verdict(metric: str, difference: float, p_holm: float | None) -> Verdict:
    if p_holm is None or not p_holm < SIGNIFICANT:
        return "no_difference"
    return "better" if (difference < 0) == lower_is_better(metric) else "worse"
