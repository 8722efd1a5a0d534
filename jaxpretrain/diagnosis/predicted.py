"""The prediction that was written into a run's folder, and the results to score it by."""

from datetime import datetime
from pathlib import Path

from jaxpretrain.config.serialize import checked, read_object
from jaxpretrain.diagnosis.history import History
from jaxpretrain.display.wording import format_count, format_number
from jaxpretrain.storage.run_documents import PredictionFile

FILE = "prediction.json"
"""The file with the prediction of a run, in its folder."""
TRAINING = "train/loss"
"""The metric whose end is a mean over steps: a single batch is noise."""
LATE = 0.9
"""The part of the steps after which the training loss counts as that of the end."""
SAME_RUN = 0.05
"""The relative difference of sizes and lengths up to which a prediction is about a run."""


def final_value(history: History, metric: str, steps: int, last: int = 1) -> float | None:
    """Returns the value of a metric after all steps; None where it has none there.

    It is the mean of the last values, of as many as are asked for; of the training loss, the mean
    over the last tenth of the steps.
    """
    curve = history[metric].finite
    if metric == TRAINING:
        values = curve.between(LATE * steps, steps).values
        return float(values.mean()) if len(values) and history.step >= steps else None
    if not len(curve) or curve.steps[-1] < steps:
        return None
    return float(curve.values[-last:].mean())


def read_prediction(workdir: Path) -> PredictionFile | None:
    """Returns the prediction in a run's folder; None without one.

    Raises:
      InputError: the file is damaged.
    """
    path = workdir / FILE
    if not path.exists():
        return None
    return checked(PredictionFile, read_object(path), path)


def about_another(said: PredictionFile, parameters: float | None, tokens: float | None) -> str:
    """Returns what a prediction is about, beside a run of another size; "" where it fits the run.

    Parameters are those without the embedding. What is not known of either fits.
    """
    pairs = ((said.parameters, parameters), (said.tokens, tokens))
    if not any(a and b and abs(a / b - 1) > SAME_RUN for a, b in pairs):
        return ""
    there, here = (
        " and ".join(
            f"{format_count(value)} {unit}"
            for value, unit in zip(sizes, ("parameters", "tokens"), strict=True)
            if value
        )
        for sizes in zip(*pairs, strict=True)
    )
    return f"the prediction is about {there}, and the run has {here}"


def how_far(extrapolation: float) -> str:
    """Returns what follows `it` on how far a prediction goes beyond the points, in FLOPs."""
    times = format_number(extrapolation, 3)
    if extrapolation > 1:
        return f"extrapolates {times} times beyond the largest run"
    return f"extrapolates to no more FLOPs: it has {times} times those of the largest run"


def is_late(said: PredictionFile, history: History) -> bool:
    """Returns true for a hindcast, also where the file does not admit it."""
    try:
        made = datetime.fromisoformat(said.time).timestamp()
    except ValueError:
        return True
    return said.hindcast or made > history.span[0]
