"""Findings in single layers: attention logits that grow, a layer that blows up."""

from collections.abc import Iterator

import numpy as np

from jaxpretrain.diagnosis.findings import Finding
from jaxpretrain.diagnosis.history import History, Series
from jaxpretrain.diagnosis.intent import TrainingPlan
from jaxpretrain.models.stack import STACK, tower_of

LOGIT_LIMIT = 100.0  # attention logit above which a softmax keeps little but its largest entry
LOGIT_GROWTH = 1.5  # growth of a high logit since the middle of the run that makes a warning
UNSTABLE_LOGIT = 1e4  # attention logit at which training became unstable in arXiv 2309.14322
LATE = 3  # number of last rows whose median is the level of a layer
ROWS = 8  # number of rows before them that show the usual level
BLOW_UP = 4.0  # growth of a layer, relative to its past and to other layers, that is a blow-up


def attention_logits(history: History, plan: TrainingPlan) -> Iterator[Finding]:
    """Finds a layer whose largest attention logit is high and still grows."""
    for name in history.names("signals/attention_logit/"):
        logits = history[name].finite
        if len(logits) < 2 * LATE:
            continue
        layer = int(np.argmax(_level(logits)))
        now = float(_level(logits)[layer])
        middle = float(_level(logits.between(0, logits.steps[-1] / 2) or logits[:LATE])[layer])
        if now < LOGIT_LIMIT or now < LOGIT_GROWTH * middle:
            continue
        high = logits.values[:, layer] > LOGIT_LIMIT
        yield Finding(
            "attention_logits_growing",
            int(logits.steps[np.argmax(high)]),
            int(logits.steps[-1]),
            f"The largest attention logit of {_title(name, layer)} has grown from "
            f"{middle:,.0f} to {now:,.0f} since the middle of the run so far. A softmax of "
            "such logits looks at one position alone; around "
            f"{UNSTABLE_LOGIT:,.0f} training becomes unstable.",
            "Normalise queries and keys (model.qk_norm), which bounds the logits, or lower the "
            "peak learning rate; z-loss does not help here.",
            {"logit": now, "before": middle, "layer": layer},
            signal=name,
            subject=tower_of(name),
        )


def blow_up(history: History, plan: TrainingPlan) -> Iterator[Finding]:
    """Finds a layer that grows far more than the other layers."""
    for name, values in _quantities(history):
        if len(values) < LATE + ROWS or values.values.shape[1] < 3:
            continue
        usual = np.median(values.values[-LATE - ROWS : -LATE], axis=0)
        # The lowest of the last rows counts: a single bad batch is no blow-up.
        growth = values.values[-LATE:].min(axis=0) / np.maximum(usual, 1e-30)
        relative = growth / np.maximum(np.median(growth), 1e-30)
        layer = int(np.argmax(relative))
        if min(growth[layer], relative[layer]) < BLOW_UP:
            continue
        what = name.split("/")[1].replace("_", " ").replace("rms", "size")
        yield Finding(
            "layer_blow_up",
            int(values.steps[-LATE]),
            int(values.steps[-1]),
            f"The {what} of {_title(name, layer)} is {growth[layer]:.0f} times what it was, "
            f"that of the other layers {np.median(growth):.2g} times.",
            "Look at the layer's parts in signals.jsonl. If the loss has suffered, go on from "
            "a checkpoint before it, with a lower learning rate or stronger clipping.",
            {"growth": float(growth[layer]), "others": float(np.median(growth))},
            signal=name,
            subject=f"{what} of {_title(name, layer)}",
        )


def update_ratios(history: History) -> tuple[float, float] | None:
    """Returns the lowest and the highest late update of a layer, relative to its weights."""
    rows = [history[name].finite for name in history.names("signals/update_ratio/", STACK)]
    levels = [_level(series) for series in rows if len(series)]
    if not levels:
        return None
    ratios = np.concatenate(levels)
    return float(ratios.min()), float(ratios.max())


def _quantities(history: History) -> Iterator[tuple[str, Series]]:
    """Yields the norms of whole layers and the factor by which each changes its input's size."""
    for quantity in ("grad_norm", "param_norm"):
        for name in history.names(f"signals/{quantity}/", STACK):
            yield name, history[name].finite
    for name in history.names("signals/activation_rms/", STACK):
        rms = history[name].finite
        below = np.concatenate([np.ones((len(rms), 1)), rms.values[:, :-1]], axis=1)
        yield name, Series(rms.steps, rms.times, rms.values / np.maximum(below, 1e-30))


def _level(series: Series) -> np.ndarray:
    """Returns the late level of each layer."""
    return np.median(series.values[-LATE:], axis=0)


def _title(name: str, layer: int) -> str:
    return f"{tower_of(name)} layer {layer}".strip()
