"""The replay command after its flags are parsed."""

import json
from argparse import Namespace
from collections.abc import Sequence

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import finite
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
    against = None
    if flags.against is not None:
        with activity("comparing the runs"):
            parted, against = compare_with(flags.workdir, flags.against)
        if parted is None:
            return 0, json.dumps({"against": against}) if flags.json else "\n".join(against)
        if flags.steps is None:
            flags.steps = str(parted)
            if flags.start is None and not any(
                kept < parted for kept in kept_checkpoints(flags.workdir).steps()
            ):
                flags.start = 0
    if flags.steps is None:
        raise InputError("--steps=A-B is required: the steps to look at")
    with activity("opening the run and its data"):
        stretch = open_stretch(flags.workdir, flags.steps, flags.start)
        arms = make_arms(stretch, flags.without, flags.without_examples, overrides)
    output = flags.output or flags.workdir / REPLAYS / f"{stretch.first}-{stretch.last}"
    say(*stretch.describe())
    look = Microscope(stretch, flags.examples) if flags.examples else None
    recorder = twice.Recorder(look) if flags.twice else None
    steps = _run(stretch, recorder or look, "replaying")
    verdicts = judge(stretch, steps)
    found = suspects(steps, stretch.before, stretch.first)
    compared = None
    if recorder is not None:
        again = twice.Recorder[View]()
        compared = twice.compare(
            stretch, (recorder, steps), (again, _run(stretch, again, "a second time"))
        )
        found = [*([compared.suspect] if compared.suspect else []), *found]
    views = [step.seen for step in steps if step.seen is not None]
    around = None
    if views:
        with activity("looking through the epoch"):
            around = look_around(stretch, views)
    document = describe_replay(stretch, steps, verdicts, found, around)
    document["closer"], pictures = closer(stretch, views, around, flags.examples)
    document |= {"twice": compared and compared.words, "against": against}
    original = {step.number: step.metrics["loss"] for step in steps}
    for arm in arms:
        losses = {s.number: s.metrics["loss"] for s in _run(arm.stretch, None, arm.name)}
        words = tell_arm(stretch, original, losses)
        document["arms"].append({"name": arm.name, "words": words, "losses": [*losses.items()]})
    document = finite(document)
    write_replay(output, document, pictures)
    is_wrong = any(one.state == "differs" for one in verdicts)
    is_wrong |= compared is not None and compared.suspect is not None
    code = EXIT_DIFFERS if is_wrong else 0
    if flags.json:
        return code, json.dumps(document | {"folder": str(output)})
    kept = f"kept in {output}; jaxpretrain report {flags.workdir} shows it"
    return code, "\n".join([*tell(document), "", kept])


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
