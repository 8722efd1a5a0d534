"""The suspects of a stretch: what is unlike the rest of it, causes before what follows from them.

Each rule compares with the stretch itself: a step with the step before, a file or a document with
the others, a layer with the other layers. A rate that jumps makes all losses high, and a document
makes gradients of layers large, but not the other way round: that is their order.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from jaxpretrain.display.wording import format_number
from jaxpretrain.replay.microscope import Part, View
from jaxpretrain.replay.stretch import Step

RATE_JUMP = 1.5
"""The ratio of two learning rates in a row that is a jump after the first steps of a run."""
FIRST_STEPS = 8
"""The number of steps of a run in which a warm-up may rise so fast."""
REPEATED = 0.6
"""The share of a document's tokens that repeats itself from which on it is a suspect."""
SHORTEST = 32
"""The smallest number of tokens of such a document."""
UNUSUAL = 6.0
"""Distance from the median in standard deviations, estimated robustly, that is unusual."""
TIMES = 3.0
"""The smallest ratio of a gradient to the usual one that is unusual."""
MASK_CHANGE = 0.25
"""The difference to other files of the share of tokens that count."""
LARGER = 10.0
"""The ratio of a layer to the other layers, or to itself at first, that is an explosion."""
MOST = 8
"""The largest number of suspects of one kind."""

Kind = Literal["process", "step", "mask", "document", "shard", "example", "layer"]


@dataclass(frozen=True)
class Suspect:
    """Something that stands out."""

    kind: Kind
    name: str
    """The step, the file, the document, the example or the layer."""
    step: int
    """The first step that shows it."""
    score: float
    """The size of it, to be compared with others of the kind."""
    why: str
    """The evidence in words."""


def suspects(steps: Sequence[Step[View]], rate_before: float, first: int) -> list[Suspect]:
    """Returns what stands out in the steps from `first` on, the likeliest cause first.

    `rate_before` is the learning rate of the step before them all.
    """
    views = [step.seen for step in steps if step.seen is not None]
    examples = [one for view in views for one in view.examples]
    rules = (
        _rates(steps, rate_before, first),
        _masks(examples),
        _documents([one for view in views for one in view.documents]),
        _shards(examples),
        _examples(examples),
        _layers(steps, first),
    )
    return [one for rule in rules for one in sorted(rule, key=lambda one: -one.score)[:MOST]]


def _rates(steps: Sequence[Step[View]], before: float, first: int) -> Iterator[Suspect]:
    """Yields the steps whose learning rate is far above the one before."""
    rates = pairwise([before, *(step.metrics["learning_rate"] for step in steps)])
    for step, (earlier, rate) in enumerate(rates, steps[0].number):
        if step >= max(first, FIRST_STEPS) and rate > RATE_JUMP * earlier > 0:
            why = f"the learning rate goes from {earlier:.3g} to {rate:.3g} in one step"
            yield Suspect("step", f"step {step:,}", step, rate / earlier, why)


def _masks(examples: Sequence[Part]) -> Iterator[Suspect]:
    """Yields the files in which another share of the tokens counts than in the others."""
    shares = {
        group: float(np.median([one.weight / max(one.last - 1, 1) for one in parts]))
        for group, parts in _by_group(examples).items()
        if parts[0].last
    }
    for group, share in shares.items():
        others = [x for name, x in shares.items() if name != group]
        usual = float(np.median(others)) if len(others) > 1 else share
        if abs(share - usual) >= MASK_CHANGE:
            step = min(one.step for one in _by_group(examples)[group])
            why = f"{share:.0%} of its tokens count in the loss, in other files {usual:.0%}"
            yield Suspect("mask", group, step, abs(share - usual), why)


def _documents(parts: Sequence[Part]) -> Iterator[Suspect]:
    """Yields the documents that repeat a short pattern."""
    long = [one for one in parts if one.last - one.first >= SHORTEST]
    usual = float(np.median([one.repeated for one in long])) if long else 0.0
    for one in long:
        if one.repeated >= max(REPEATED, usual + REPEATED / 2):
            what = "one token" if one.period == 1 else f"a pattern of {one.period} tokens"
            length = one.last - one.first
            why = f"{one.repeated:.0%} of its {length:,} tokens repeat {what}; its loss is "
            why += format_number(one.loss)
            yield Suspect("document", describe(one), one.step, one.repeated * length, why)


def _shards(examples: Sequence[Part]) -> Iterator[Suspect]:
    """Yields the files whose examples have much higher losses than those of the others."""
    groups = _by_group(examples)
    for group, parts in groups.items():
        others = [one.loss for name in groups for one in groups[name] if name != group]
        if len(parts) < 2 or len(others) < 3:
            continue
        middle, deviation = _spread(others)
        here = float(np.nanmedian([one.loss for one in parts]))
        if (score := (here - middle) / deviation) >= UNUSUAL:
            step = min(one.step for one in parts)
            why = f"{len(parts)} examples of it have a loss of {format_number(here)} (median); "
            why += f"those of other files {format_number(middle)}"
            yield Suspect("shard", group, step, score, why)


def _examples(examples: Sequence[Part]) -> Iterator[Suspect]:
    """Yields the examples with a loss or a gradient far above that of the others."""
    if len(examples) < 4:
        return
    middle, deviation = _spread([one.loss for one in examples])
    known = [one.gradient for one in examples if one.gradient is not None]
    usual, apart = _spread(known) if len(known) > 3 else (0.0, np.inf)
    for one in examples:
        height = (one.loss - middle) / deviation
        size = 0.0
        if one.gradient is not None and one.gradient >= TIMES * usual:
            size = (one.gradient - usual) / apart
        if max(height, size) >= UNUSUAL:
            why = f"loss {format_number(one.loss)}, usually {format_number(middle)}"
            if one.gradient is not None:
                why += f"; gradient {one.gradient:.3g}, usually {usual:.3g}, most in {one.layer}"
            yield Suspect("example", describe(one), one.step, max(height, size), why)


def _layers(steps: Sequence[Step[View]], first: int) -> Iterator[Suspect]:
    """Yields the layers whose signals are far above those of the other layers, or their own.

    A layer is named once, with the signal that shows it most.
    """
    best: dict[str, Suspect] = {}
    start: Mapping[str, np.ndarray] = next((s.signals for s in steps if s.signals), {})
    for step in steps:
        if step.number < first:
            continue
        for signal, values in step.signals.items():
            if np.ndim(values) != 1 or not signal.endswith("blocks"):
                continue
            for layer, value in enumerate(np.nan_to_num(values, nan=np.inf).tolist()):
                others = np.delete(values, layer)
                usual = float(np.median(others)) if len(others) else np.inf
                at_first = float(start[signal][layer]) if signal in start else np.inf
                ratios = [value / max(x, 1e-30) for x in (usual, at_first)]
                place, what = f"layer {layer} of {_tower(signal)}", signal.split("/")[0]
                score = max(ratios)
                if score < LARGER or (place in best and best[place].score >= score):
                    continue
                than = "the other layers" if ratios[0] >= ratios[1] else "at first"
                why = f"its {what.replace('_', ' ')} is {value:.3g} at step {step.number:,}, "
                why += f"{score:.3g} times that of {than}"
                best[place] = Suspect("layer", place, step.number, score, why)
    yield from best.values()


def describe(one: Part) -> str:
    """Returns an example or a document in words."""
    where = f"{one.place.name} (sample {one.place.sample:,}, row {one.row} of step {one.step:,})"
    source = "" if one.place.source is None else f"{one.place.source}: "
    return f"{source}{where}" + (f", tokens {one.first}-{one.last - 1} of the row" * bool(one.last))


def _tower(signal: str) -> str:
    return "/".join(signal.split("/")[1:])


def _by_group(examples: Sequence[Part]) -> dict[str, list[Part]]:
    """Returns the examples of each file or folder, in which something counts."""
    groups: dict[str, list[Part]] = {}
    for one in examples:
        if one.weight:
            groups.setdefault(one.place.group, []).append(one)
    return groups


def _spread(values: Sequence[float]) -> tuple[float, float]:
    """Returns the median, and the standard deviation by the median deviation from it."""
    known = np.array(values, float)
    middle = float(np.nanmedian(known))
    deviation = 1.4826 * float(np.nanmedian(np.abs(known - middle)))
    return middle, max(deviation, 1e-3 * abs(middle), 1e-12)
