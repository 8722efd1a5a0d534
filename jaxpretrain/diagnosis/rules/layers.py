"""What single layers show: attention that sharpens without end, a layer that blows up."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jaxpretrain.diagnosis.findings import Finding
from jaxpretrain.diagnosis.history import History, Series
from jaxpretrain.diagnosis.intent import Plan

LOGIT_LIMIT = 100.0
"""Attention logits above it leave a softmax almost nothing but its largest entry,"""
LOGIT_GROWTH = 1.5
"""and are worth a warning where they have grown that much since the middle of the run."""
UNSTABLE_LOGIT = 1e4
"""Where training was seen to become unstable (arXiv 2309.14322)."""
LATE = 3
"""Rows whose median is a layer's level."""
ROWS = 8
"""Rows before them that say what is usual."""
BLOW_UP = 4.0
"""Times by which a layer has to leave its own past and the other layers behind."""


def attention_logits(history: History, plan: Plan) -> list[Finding]:
    """The largest attention logit of a layer is high, and grows on."""
    found = []
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
        found.append(
            Finding(
                "attention_logits_growing",
                "warning",
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
                subject=_tower(name),
            )
        )
    return found


def blow_up(history: History, plan: Plan) -> list[Finding]:
    """One layer leaves its own past and the other layers behind."""
    found = []
    for name, values in _quantities(history):
        if len(values) < LATE + ROWS or values.values.shape[1] < 3:
            continue
        usual = np.median(values.values[-LATE - ROWS : -LATE], axis=0)
        # The lowest of the last rows: a single bad batch is none.
        growth = values.values[-LATE:].min(axis=0) / np.maximum(usual, 1e-30)
        relative = growth / np.maximum(np.median(growth), 1e-30)
        layer = int(np.argmax(relative))
        if min(growth[layer], relative[layer]) < BLOW_UP:
            continue
        what = name.split("/")[1].replace("_", " ").replace("rms", "size")
        found.append(
            Finding(
                "layer_blow_up",
                "warning",
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
        )
    return found


def update_ratios(history: History) -> tuple[float, float] | None:
    """The lowest and the highest update of a layer of late, relative to its weights."""
    rows = [history[name].finite for name in history.names("signals/update_ratio/", "blocks")]
    levels = [_level(series) for series in rows if len(series)]
    if not levels:
        return None
    ratios = np.concatenate(levels)
    return float(ratios.min()), float(ratios.max())


def _quantities(history: History) -> Iterator[tuple[str, Series]]:
    """Norms of whole layers, and by how much each layer changes the size of what passes."""
    for quantity in ("grad_norm", "param_norm"):
        for name in history.names(f"signals/{quantity}/", "blocks"):
            yield name, history[name].finite
    for name in history.names("signals/activation_rms/", "blocks"):
        rms = history[name].finite
        below = np.concatenate([np.ones((len(rms), 1)), rms.values[:, :-1]], axis=1)
        yield name, Series(rms.steps, rms.times, rms.values / np.maximum(below, 1e-30))


def _level(series: Series) -> np.ndarray:
    """Of each layer, of late."""
    return np.median(series.values[-LATE:], axis=0)


def _title(name: str, layer: int) -> str:
    return f"{_tower(name)} layer {layer}".strip()


def _tower(name: str) -> str:
    """`signals/x/encoder/blocks` -> encoder."""
    return name.split("/", 2)[2].removesuffix("blocks").rstrip("/")
