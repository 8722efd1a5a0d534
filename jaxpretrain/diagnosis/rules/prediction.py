"""The score of a prediction: what was said about the end of a run, beside what came."""

from collections.abc import Iterator

from jaxpretrain.diagnosis.findings import Finding
from jaxpretrain.diagnosis.history import History
from jaxpretrain.diagnosis.intent import TrainingPlan
from jaxpretrain.diagnosis.predicted import about_another, final_value, how_far, is_late
from jaxpretrain.display.wording import EVAL_DIGITS, format_number
from jaxpretrain.storage.run_documents import PredictedScore, PredictionFile


def scored(history: History, plan: TrainingPlan) -> Iterator[Finding]:
    """Compares the end of a run with `prediction.json`, metric by metric."""
    said = plan.prediction
    if said is None or history.step < plan.total_steps or about_another(said, *_size(history)):
        return
    loss = PredictedScore(said.metric, said.loss, said.low, said.high)
    for one in (loss, *said.scores):
        measured = final_value(history, one.metric, plan.total_steps, said.last)
        if measured:
            yield _score(one, measured, said, is_late(said, history), plan.total_steps)


def another_size(history: History, plan: TrainingPlan) -> Iterator[Finding]:
    """Tells from the first step on that a run is not the predicted one, while it can be stopped.

    Runs of older versions do not say what size they have.
    """
    said, size = plan.prediction, _size(history)
    if said is None or history.step < 1 or not (other := about_another(said, *size)):
        return
    evidence = {n: x for n, x in zip(("parameters", "tokens"), size, strict=True) if x is not None}
    yield Finding(
        "prediction_of_another_size",
        1,
        history.step,
        f"There will be no score: {other}.",
        "Train the run that was predicted in a new folder, or predict this one in a folder of its "
        "own and train it there.",
        evidence,
        signal=said.metric,
    )


def _size(history: History) -> tuple[float | None, float | None]:
    return history.last("run/parameters"), history.last("run/tokens")


def _score(
    one: PredictedScore, measured: float, said: PredictionFile, is_late: bool, step: int
) -> Finding:
    error, is_inside = one.value / measured - 1, one.low <= measured <= one.high
    value, low, high, came = (
        format_number(x, EVAL_DIGITS) for x in (one.value, one.low, one.high, measured)
    )
    kind = "A hindcast, made after the run began," if is_late else "The prediction"
    where = "inside" if is_inside else "outside of"
    return Finding(
        "prediction_scored",
        step,
        step,
        f"{kind} was {value} for {one.metric}, and {came} came: an error of {error:+.2%}, {where} "
        f"its interval from {low} to {high}. It {how_far(said.extrapolation)} of its points.",
        "Nothing to do."
        if is_inside
        else "Look for what this run has and the smaller ones had not, before the law is trusted "
        "further.",
        {"predicted": one.value, "low": one.low, "high": one.high, "measured": measured}
        | {"error": error},
        severity="info" if is_inside else "warning",
        signal=one.metric,
        subject=one.metric,
    )
