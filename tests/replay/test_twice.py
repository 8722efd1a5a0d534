from pathlib import Path

import jax
import numpy as np
import pytest

from jaxpretrain.replay import twice
from jaxpretrain.replay.stretch import open_stretch
from jaxpretrain.train.recheck import Recheck
from tests.train.test_recheck import flipped


def test_a_stretch_has_the_same_bits_twice_unless_a_bit_flips_on_a_device(
    plain: Path, monkeypatch: pytest.MonkeyPatch
):
    stretch = open_stretch(plain, "6-8")

    def computed() -> tuple[twice.Recorder, list]:
        recorder = twice.Recorder()
        return recorder, [*stretch.run(stretch.restore(), recorder)]

    one, other = computed(), computed()
    assert [*one[0].gradients] == [6, 7, 8]
    assert twice.compare(stretch, one, other) == twice.Twice(
        "computed twice: the same bits in all 4 steps", None
    )
    right = Recheck.checksums

    def wrong(self: Recheck, state, batch) -> dict[str, np.ndarray]:
        if int(state.step) == 6:  # of step 7
            batch = {"tokens": flipped(batch["tokens"], jax.devices()[3])}
        return right(self, state, batch)

    monkeypatch.setattr(Recheck, "checksums", wrong)
    found = twice.compare(stretch, one, computed())
    assert found.suspect is not None and (found.suspect.kind, found.suspect.step) == ("process", 7)
    assert found.words.startswith("computed twice, step 7 differs on device 3 of process 0 (")


def test_states_and_reports_that_differ_are_named_too(plain: Path):
    stretch = open_stretch(plain, "6-7")
    one = twice.Recorder()
    steps = [*stretch.run(stretch.restore(), one)]
    other = twice.Recorder()
    other.gradients = one.gradients
    other.states = one.states | {7: one.states[7] | {"params/head/kernel": np.array(1)}}
    found = twice.compare(stretch, (one, steps), (other, steps))
    assert found.words == (
        "computed twice, step 7 differs in params/head/kernel of the state before it"
    )
    steps[0].metrics["loss"] += 1e-6
    again = [*stretch.run(stretch.restore())]
    found = twice.compare(stretch, (one, steps), (one, again))
    assert found.words == "computed twice, step 5 differs in what is reported of it"
