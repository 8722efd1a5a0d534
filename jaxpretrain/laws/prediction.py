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
from jaxpretrain.laws.analysis import Analysis
from jaxpretrain.laws.fits import interval
from jaxpretrain.laws.law import FLOPS, NAMES
from jaxpretrain.laws.sizes import configured, size_of
from jaxpretrain.storage.files import write_atomically

_SIZE = re.compile(r"n=([^,=]+),d=([^,=]+)")


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
    try:
        parameters, tokens = map(float, given.groups())
    except ValueError:
        parameters = tokens = np.nan
    if not (0 < parameters < np.inf and 0 < tokens < np.inf):
        raise InputError(f"--predict={text}: write a config, or n=13e9,d=5e12")
    return PredictionTarget(text, parameters, tokens)


def predict(found: Analysis, target: PredictionTarget, *, last: int, hindcast: bool) -> Document:
    """Returns the content of `prediction.json`.

    The interval is that of a new run: of the laws of all resamplings, each with the residual of a
    point that is drawn for it. Residuals are smaller than the noise, because the coefficients
    follow them, so all deviations grow by the square root of n / (n - 5).

    Raises:
      InputError: the points determine no law.
    """
    if found.huber is None:
        raise InputError("--predict: optima determine no law; give the points of all runs")
    n, d = target.parameters, target.tokens
    loss, number = float(found.huber.law.loss(n, d)), len(found.points)
    many = np.log(found.huber.resampled.loss(n, d) / loss)
    rest = np.random.default_rng(0).choice(found.residuals(), len(many))
    wider = np.sqrt(number / (number - len(NAMES)))
    low, high = interval(loss * np.exp(wider * (many + rest)))
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


def require_place(workdir: Path, *, hindcast: bool) -> bool:
    """Checks that a prediction may be written into a folder; returns true where it is a hindcast.

    Raises:
      InputError: the run has begun and no hindcast was asked for, or a prediction from before it
        began is there.
    """
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
