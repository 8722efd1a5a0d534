"""What if: a stretch from the same checkpoint without some data, or with other values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.data.skip import (
    Ranges,
    Skipping,
    joined,
    parse_ranges,
    positions,
    unskipped,
)
from jaxpretrain.display.wording import format_number
from jaxpretrain.replay.stretch import Stretch, fitting_stages, open_data
from jaxpretrain.train.experiment import Resolved, resolve, skip_steps

SPIKE_RISE = 0.03
"""The smallest rise of a loss above its level, relative to it, that is called a spike."""
AWAY, SMALLER = 0.25, 0.75
"""The largest share of the rise that is left where a spike stays away, or is smaller."""
Losses = Mapping[int, float]
"""Step -> loss."""


@dataclass(frozen=True)
class Arm:
    """The stretch with something changed."""

    name: str
    """The flags that make it."""
    stretch: Stretch


def make_arms(
    stretch: Stretch,
    without: Sequence[str],
    without_examples: Sequence[str],
    overrides: Sequence[tuple[str, str]],
) -> list[Arm]:
    """Returns an arm for each of the steps and lists of samples left out, and one for all changes.

    What is left out is what `--skip_steps` and `data.skip` leave out: later samples move up.
    InputError: it is not in the stretch, or values change the shapes of the state or the batch.
    """
    arms = []
    for text in without:
        flag = f"--without={text}"
        ((first, last),) = parse_ranges([text], "--without")
        if not stretch.start < first <= last <= stretch.last:
            steps = f"{stretch.start + 1:,} to {stretch.last:,}"
            raise InputError(f"{flag}: the replay has the steps {steps}")
        skipped = skip_steps(stretch.experiment, [text], "--without")
        arms.append(_without(stretch, flag, parse_ranges(skipped.data.skip, "data.skip")))
    for text in without_examples:
        flag = f"--without_examples={text}"
        samples = parse_ranges(text.split(","), "--without_examples")
        first = stretch.stages.samples(stretch.start + 1).start
        last = stretch.stages.samples(stretch.last).stop - 1
        if not first <= samples[0][0] <= samples[-1][1] <= last:
            raise InputError(f"{flag}: the replay has the samples {first:,} to {last:,}")
        skip = parse_ranges(stretch.experiment.data.skip, "data.skip")
        ends = [(int(a), int(b)) for a, b in positions(np.array(samples), skip).tolist()]
        arms.append(_without(stretch, flag, joined(skip, tuple(ends))))
    if overrides:
        arms.append(_changed(stretch, overrides))
    return arms


def _without(stretch: Stretch, name: str, ranges: Ranges) -> Arm:
    """Returns the arm that leaves out positions in the order of the data."""
    data, _ = unskipped(stretch.data)
    return Arm(name, replace(stretch, data=Skipping.of(data, ranges)))


def _changed(stretch: Stretch, overrides: Sequence[tuple[str, str]]) -> Arm:
    """Returns the arm with other values in the config."""
    name = " ".join(f"--config.{path}={value}" for path, value in overrides)
    before = stretch.experiment
    experiment: Resolved = resolve(apply_overrides(before, overrides))
    stages, _ = fitting_stages(experiment, jax.devices())
    for here, there in zip(stages.stages, stretch.stages.stages, strict=False):
        if _shapes(here.program.batch) != _shapes(there.program.batch):
            raise InputError(f"{name}: changes the shape of the batch, which a replay keeps")
    here, there = (one.program.state for one in (stages, stretch.stages))
    if [x.shape for x in jax.tree.leaves(here)] != [x.shape for x in jax.tree.leaves(there)]:
        raise InputError(f"{name}: changes the shapes of the state, which a replay keeps")
    if stages.samples(stretch.start + 1) != stretch.stages.samples(stretch.start + 1):
        raise InputError(f"{name}: changes which samples the steps have, which a replay keeps")
    data = stretch.data
    if (experiment.seed, experiment.data) != (before.seed, before.data):
        data = open_data(experiment, stages)
    return Arm(name, replace(stretch, stages=stages, data=data))


def _shapes(batch: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, tuple[int, ...]]:
    return {name: x.shape for name, x in batch.items()}


def tell(stretch: Stretch, original: Losses, arm: Losses) -> str:
    """Returns in words whether the spike of a stretch stays away in an arm."""
    shown = {step: loss for step, loss in original.items() if step >= stretch.first}
    peak_step = max(shown, key=lambda step: np.nan_to_num(shown[step], nan=np.inf))
    before = [loss for step, loss in original.items() if step < peak_step]
    known = stretch.before.get("train/loss")
    level = float(np.nanmedian(before or [known or min(shown.values())]))
    peak = shown[peak_step]
    other = float(np.max([loss for step, loss in arm.items() if step >= stretch.first]))
    if not np.isfinite(other):  # one of them is not
        return "the loss is not finite"
    end = f"at step {stretch.last:,} the loss is {format_number(arm[stretch.last])}, in the run "
    end += format_number(original[stretch.last])
    if np.isfinite(peak) and peak - level < SPIKE_RISE * abs(level):
        return f"the run has no spike here (its highest loss is {format_number(peak)}); {end}"
    left = (other - level) / (peak - level) if np.isfinite(peak) else 0.0
    what = "the spike comes all the same"
    if left < SMALLER:
        what = "the spike stays away" if left < AWAY else "the spike is smaller"
    return (
        f"{what}: at most {format_number(other)} instead of {format_number(peak)} at step "
        f"{peak_step:,}, over a level of {format_number(level)}; {end}"
    )
