"""Findings about data that is read again."""

from collections.abc import Iterator
from math import ceil

import numpy as np

from jaxpretrain.diagnosis.findings import Finding
from jaxpretrain.diagnosis.history import History
from jaxpretrain.diagnosis.intent import TrainingPlan
from jaxpretrain.diagnosis.statistics import SIGMA

GOOD_EPOCHS = 4.0  # epochs up to which text is nearly worth as much as new (arXiv 2305.16264)
LONGEST_CURVE = 4096  # number of last reports that are searched for a period
SMALLEST_LAG = 4  # shortest period in reports
CORRELATION_SIGMAS = 6.0  # correlation at a period above its neighbours, in standard errors


def epochs(history: History, plan: TrainingPlan) -> Iterator[Finding]:
    """Finds sources of text that have been read more than once."""
    if history.unit == "images":  # they come with other crops and masks each time
        return
    for name in history.names("train/", "epochs"):
        curve = history[name].finite
        if not len(curve) or curve.values[-1] <= 1.0:
            continue
        num_epochs, source = float(curve.values[-1]), name.split("/")[1]
        source = "" if source == "epochs" else source
        are_many = num_epochs > GOOD_EPOCHS
        yield Finding(
            "repeated_data",
            int(curve.steps[np.searchsorted(curve.values, 1.0, side="right")]),
            int(curve.steps[-1]),
            f"{source or 'The data'} is being read for the {_ordinal(ceil(num_epochs))} time "
            f"({num_epochs:.2f} epochs).",
            f"More than {GOOD_EPOCHS:g} epochs teach little that is new: watch the validation "
            "loss, add data, or lower the source's share."
            if are_many
            else f"Nothing: up to {GOOD_EPOCHS:g} epochs are nearly worth as much as new data.",
            {"epochs": num_epochs},
            signal=name,
            subject=source,
            severity="warning" if are_many else "info",
        )


def _ordinal(number: int) -> str:
    """Returns a number as 2nd, 3rd, 4th, 11th or 21st."""
    teens = 10 < number % 100 < 20
    return f"{number}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def repetition(history: History, plan: TrainingPlan) -> Iterator[Finding]:
    """Finds losses that repeat with a fixed period, as they do where the batches repeat."""
    loss = history.loss[-LONGEST_CURVE:]
    if len(loss) < 16 * SMALLEST_LAG:
        return
    every = int(np.median(np.diff(loss.steps)))
    # The first and the last step are reported off the grid, and so may be the first after a resume.
    loss = loss[loss.steps % max(every, 1) == 0]
    if len(loss) < 15 * SMALLEST_LAG or np.any(np.diff(loss.steps) != every):
        return
    rest = _detrended(loss.values)
    correlation = _autocorrelation(rest)
    lags = np.arange(SMALLEST_LAG, len(rest) // 3)
    # The height of a lag above its neighbours counts: slow drifts lift them all.
    height = correlation[lags] - np.maximum(correlation[lags - 1], correlation[lags + 1])
    sigmas = height * np.sqrt((len(rest) - lags) / 2)
    best = int(np.argmax(sigmas))
    if sigmas[best] < CORRELATION_SIGMAS:
        return
    lag = int(lags[best])
    period = lag * every
    yield Finding(
        "repeated_batches",
        int(loss.steps[0]),
        int(loss.steps[-1]),
        f"The losses repeat every {period:,} steps (correlation {correlation[lag]:.2f}, "
        f"{sigmas[best]:.0f} standard errors above its neighbours): so do the batches.",
        "Look at the batches with python -m jaxpretrain.show_batch: an epoch is that short, or "
        "the data holds the same documents many times.",
        {"period": period, "correlation": float(correlation[lag]), "sigmas": sigmas[best]},
    )


def _detrended(values: np.ndarray, width: int = 9) -> np.ndarray:
    """Returns the values minus the mean of their neighbours, with outliers cut to 4 deviations."""
    weights = np.convolve(np.ones(len(values)), np.ones(width), "same")
    rest = values - np.convolve(values, np.ones(width), "same") / weights
    limit = 4 * SIGMA * np.median(np.abs(rest))
    return np.clip(rest, -limit, limit)


def _autocorrelation(values: np.ndarray) -> np.ndarray:
    """Returns the correlation of a series with itself for each lag."""
    size = 1 << (2 * len(values) - 1).bit_length()
    power = np.abs(np.fft.rfft(values - values.mean(), size)) ** 2
    sums = np.fft.irfft(power, size)[: len(values)]
    counts = len(values) - np.arange(len(values))
    return sums / counts / max(sums[0] / len(values), 1e-300)
