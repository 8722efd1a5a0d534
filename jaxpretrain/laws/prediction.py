"""Predictions of runs: made before they start, written into their folders."""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import Document, finite
from jaxpretrain.diagnosis.predicted import FILE, read_prediction
from jaxpretrain.display.wording import format_number
from jaxpretrain.laws.analysis import Analysis
from jaxpretrain.laws.fits import interval_of_run
from jaxpretrain.laws.law import FLOPS
from jaxpretrain.laws.points import Points
from jaxpretrain.laws.sizes import configured, size_of
from jaxpretrain.storage.files import write_atomically

_SIZE = re.compile(r"n=([^,=]+),d=([^,=]+)|[ncd]=.*")


@dataclass(frozen=True)
class PredictionTarget:
    """A run to predict."""

    config: str
    """The config, or the sizes as they were given."""
    parameters: float
    tokens: float


def parse_target(text: str, overrides: tuple[tuple[str, str], ...] = ()) -> PredictionTarget:
    """Returns the run of a config, or of `n=13e9,d=5e12`, parameters and tokens.

    Raises:
      InputError: there is no such config, or a number is not positive.
    """
    if (given := _SIZE.fullmatch(text)) is None:
        size = size_of(configured(text, overrides))
        return PredictionTarget(text, float(size.parameters), float(size.tokens))
    if overrides:
        raise InputError(f"--config.{overrides[0][0]}: --predict={text} is no config to change")
    try:
        parameters, tokens = map(float, given.groups())
    except (TypeError, ValueError):
        parameters = tokens = np.nan
    if not (0 < parameters < np.inf and 0 < tokens < np.inf):
        raise InputError(f"--predict={text}: write a config, or n=13e9,d=5e12, numbers above 0")
    return PredictionTarget(text, parameters, tokens)


def predict(found: Analysis, target: PredictionTarget, *, last: int, hindcast: bool) -> Document:
    """Returns the content of `prediction.json`.

    Intervals are those of a new run, not of a law.

    Raises:
      InputError: the points determine no law.
    """
    if found.huber is None:
        raise InputError("--predict: optima determine no law; give the points of all runs")
    n, d = target.parameters, target.tokens
    loss, number = float(found.huber.law.loss(n, d)), len(found.points)
    many = np.log(found.huber.resampled.loss(n, d))
    low, high = np.exp(interval_of_run(np.log(loss), many, found.residuals())).tolist()
    scores = []
    for name, law in found.tasks.items():
        guess = law.predict(n, d)
        task = name.partition("/")[0]
        share = name if "/" in name else f"{name}/acc"
        metrics = {"bits_per_byte": f"eval/{task}/bpb", "accuracy": f"eval/{share}"}
        for kind, metric in metrics.items():
            ends = {"low": guess[f"{kind}_low"], "high": guess[f"{kind}_high"]}
            scores.append({"metric": metric, "value": guess[kind], **ends})
    said = {
        "metric": found.points.metric,
        "last": last,
        "loss": loss,
        "low": low,
        "high": high,
        "extrapolation": float(FLOPS * n * d / found.points.flops.max()),
        "hindcast": hindcast,
        "scores": scores,
        "config": target.config,
        "parameters": n,
        "tokens": d,
        "points": found.points.hash,
        "num_points": number,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if None in (finite(loss), finite(low), finite(high)):
        raise InputError("--predict: the points do not determine the law; take more of them")
    return said


def doubts(points: Points, target: PredictionTarget) -> list[str]:
    """Returns warnings about a size or a length that is further from the points than the FLOPs."""
    further = max(1.5, FLOPS * target.parameters * target.tokens / points.flops.max())
    lines = []
    for what, wanted, known in (
        ("parameters", target.parameters, points.parameters),
        ("tokens", target.tokens, points.tokens),
    ):
        for times, way in ((wanted / known.max(), "more"), (known.min() / wanted, "fewer")):
            if times > further:
                lines.append(
                    f"the run has {format_number(times, 3)} times {way} {what} than any point: "
                    "this is how far the law is extrapolated, whatever the FLOPs"
                )
    return lines


def require_place(workdir: Path, *, hindcast: bool) -> bool:
    """Checks that a prediction may be written into a folder; returns true where it is a hindcast.

    Raises:
      InputError: the run has begun and no hindcast was asked for, a prediction from before it
        began is there, or the folder holds other runs.
    """
    if inside := next(workdir.glob("*/**/metrics.jsonl"), None):
        raise InputError(
            f"--workdir={workdir}: holds the run {inside.parent}; name the folder of the run that "
            "is predicted"
        )
    begun = (workdir / "metrics.jsonl").exists() or (workdir / "experiment.json").exists()
    if begun and not hindcast:
        raise InputError(
            f"--workdir={workdir}: this run has already begun, so nothing about it can be "
            "predicted; --hindcast marks it as made afterwards"
        )
    earlier = read_prediction(workdir)
    if begun and earlier is not None and not earlier.hindcast:
        raise InputError(f"{workdir / FILE}: is from before the run began; it stays as it is")
    return begun


def write_prediction(workdir: Path, prediction: Document) -> Path:
    """Writes `prediction.json` into the folder of a run, which need not exist; returns its path."""
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / FILE
    write_atomically(path, json.dumps(prediction, indent=2) + "\n")
    return path
