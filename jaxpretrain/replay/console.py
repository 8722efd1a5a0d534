"""The replay command after its flags are parsed."""

import json
from argparse import Namespace
from collections.abc import Sequence

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import Document, finite
from jaxpretrain.display.progress import Progress, activity, say
from jaxpretrain.replay import twice
from jaxpretrain.replay.against import compare_with
from jaxpretrain.replay.arms import make_arms
from jaxpretrain.replay.arms import tell as tell_arm
from jaxpretrain.replay.document import closer, describe_replay, write_replay
from jaxpretrain.replay.epoch import look_around
from jaxpretrain.replay.microscope import Microscope, View
from jaxpretrain.replay.proof import judge
from jaxpretrain.replay.stretch import Look, Step, Stretch, kept_checkpoints, open_stretch
from jaxpretrain.replay.suspects import suspects
from jaxpretrain.replay.told import tell
from jaxpretrain.storage.run_documents import REPLAYS

EXIT_DIFFERS = 3
"""The exit code where steps differ beyond rounding from what the run has recorded."""


def run_replay(flags: Namespace, overrides: Sequence[tuple[str, str]]) -> tuple[int, str]:
    """Computes a stretch of a run again, and what else flags ask for.

    Returns the exit code, and what was found as words or, with `--json`, as a document.

    InputError: something that was given is wrong.
    """
    if flags.examples < 0:
        raise InputError(f"--examples={flags.examples}: must be 0 or more")
    against = None if flags.against is None else _compare(flags)
    if flags.steps is None:
        if against is None:
            raise InputError("--steps=A-B is required: the steps to look at")
        return 0, json.dumps({"against": against}) if flags.json else "\n".join(against)
    with activity("opening the run and its data"):
        stretch = open_stretch(flags.workdir, flags.steps, flags.start)
        arms = make_arms(stretch, flags.without, flags.without_examples, overrides)
    output = flags.output or flags.workdir / REPLAYS / f"{stretch.first}-{stretch.last}"
    try:
        output.mkdir(parents=True, exist_ok=True)  # now, and not after all the work
    except OSError as error:
        raise InputError(f"{output}: no folder can be made there ({error.strerror})") from error
    say(*stretch.describe())
    is_wrong, document, pictures = _replay(stretch, flags)
    document["against"] = against
    original = {one["step"]: one["loss"] for one in document["metrics"]}
    for arm in arms:
        losses = {s.number: s.metrics["loss"] for s in _run(arm.stretch, None, arm.name)}
        words = tell_arm(stretch, original, losses)
        document["arms"].append({"name": arm.name, "words": words, "losses": [*losses.items()]})
    document = finite(document)
    write_replay(output, document, pictures)
    code = EXIT_DIFFERS if is_wrong else 0
    if flags.json:
        return code, json.dumps(document | {"folder": str(output)})
    kept = f"kept in {output}"
    if output.resolve().is_relative_to((flags.workdir / REPLAYS).resolve()):
        kept += f"; jaxpretrain report {flags.workdir} shows it"
    return code, "\n".join([*tell(document), "", kept])


def _compare(flags: Namespace) -> list[str]:
    """Returns lines about the run of `--against`; sets `--steps`, if need be, to where they part.

    Where no checkpoint before that step is kept, the replay begins with the initial state.
    """
    with activity("comparing the runs"):
        parted, lines = compare_with(flags.workdir, flags.against)
    if parted is not None and flags.steps is None:
        flags.steps = str(parted)
        kept = kept_checkpoints(flags.workdir).steps()
        if flags.start is None and not any(step < parted for step in kept):
            flags.start = 0
    return lines


def _replay(stretch: Stretch, flags: Namespace) -> tuple[bool, Document, dict[str, np.ndarray]]:
    """Computes a stretch, twice if asked to; returns whether bits differ, document and pictures."""
    look = Microscope(stretch, flags.examples) if flags.examples else None
    recorder = twice.Recorder(look) if flags.twice else None
    steps = _run(stretch, recorder or look, "replaying")
    verdicts = judge(stretch, steps)
    found = suspects(steps, stretch.rate_before, stretch.first)
    is_wrong, words = any(one.state == "differs" for one in verdicts), None
    if recorder is not None:
        again = twice.Recorder[View]()
        other = again, _run(stretch, again, "a second time")
        compared = twice.compare(stretch, (recorder, steps), other)
        words = compared.words
        if compared.suspect is not None:
            is_wrong, found = True, [compared.suspect, *found]
    views = [step.seen for step in steps if step.seen is not None]
    around = None
    if views:
        with activity("looking through the epoch"):
            around = look_around(stretch, views)
    document = describe_replay(stretch, steps, verdicts, found, around)
    document["closer"], pictures = closer(stretch, views, around, flags.examples)
    return is_wrong, document | {"twice": words}, pictures


def _run(stretch: Stretch, look: Look[View] | None, what: str) -> list[Step[View]]:
    """Returns the steps of a stretch from its checkpoint on, and shows how far they are."""
    with activity(f"{what}: reading the checkpoint, compiling"):
        steps = stretch.run(stretch.restore(), look)
        made = [next(steps)]
    with Progress(stretch.num_steps, stays=False) as progress:
        for step in steps:
            made.append(step)
            progress.update(step.number - stretch.start)
    return made
