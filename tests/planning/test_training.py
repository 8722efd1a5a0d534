"""A run from its command line to its exit code, with a training that only says how it ends."""

from pathlib import Path
from typing import Any

import jax
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.planning import training as commanded
from jaxpretrain.planning.training import run_training
from jaxpretrain.train.saves import Ended, NotSaved
from jaxpretrain.train.watchdog import Watchdog
from tests.planning.conftest import TINY, changed

FULL = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore lines")


class Training:
    """Plays the part of `train_experiment`: each call ends in the next way that is given."""

    def __init__(self, *ends: bool | BaseException) -> None:
        self.ends = list(ends)
        self.calls: list[tuple[Any, dict[str, Any]]] = []

    def __call__(self, experiment: Any, workdir: Path, **options: Any) -> bool:
        self.calls.append((experiment, options))
        end = self.ends.pop(0)
        if isinstance(end, BaseException):
            raise end
        return end


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Launches a tiny decoder whose training is made up; gives the exit code."""
    config = tmp_path / "tiny.py"
    config.write_text(TINY.format(hardware="local", d_ff=64))

    def call(
        training: Training, *overrides: tuple[str, str], workdir: bool = True, **more: Any
    ) -> int:
        monkeypatch.setattr(commanded, "train_experiment", training)
        return run_training(
            str(config),
            overrides,
            tmp_path / "run" if workdir else None,
            preflight_only=False,
            allow_config_change=True,
            processes=(None, None, None, None, 300.0),
            **more,
        )

    return call


def test_the_exit_code_says_how_the_run_ended(start: Any, capsys: pytest.CaptureFixture[str]):
    assert start(Training(True)) == 0
    done = capsys.readouterr().err
    assert done.startswith("done. Next: ") and " evaluate --checkpoint=" in done
    assert start(Training(False)) == 75
    assert capsys.readouterr().err == "stopped and saved; run the same command to go on\n"
    assert start(Training(Ended("it judged itself"))) == 3
    assert capsys.readouterr().err == "error: it judged itself\n"
    assert start(Training(NotSaved("the disk is full"))) == 1


def test_training_is_told_what_was_given(start: Any):
    training = Training(True)
    start(training, ("train.batch_size", "32"), ("seed", "5"))
    ((experiment, options),) = training.calls
    assert isinstance(options.pop("watchdog"), Watchdog)
    assert (experiment.train.batch_size, experiment.seed) == (32, 5)
    assert options == {
        "allow_config_change": True,
        "given": ["train.batch_size", "seed"],
        "earlier": None,
        "look": commanded._look,
        "rewind_to": None,
    }


def test_steps_are_left_out_one_text_after_another(start: Any):
    """Step 7 is the one that a run without the steps 2-3 has shown."""
    training = Training(True, True)
    start(training, ("train.batch_size", "16"), skipped_steps=["2-3", "7"])
    start(training, ("train.batch_size", "16"), skipped_steps=["2-3,7"])
    ranges = [experiment.data.skip for experiment, _ in training.calls]
    assert ranges == [("16-47", "128-143"), ("16-47", "96-111")]


def test_without_room_a_chosen_microbatch_is_left_alone(start: Any):
    training = Training(FULL, True)
    with pytest.raises(InputError, match=r"out of memory: RESOURCE_EXHAUSTED: Out of memory; what"):
        start(training, ("train.microbatch_size", "2"))
    assert len(training.calls) == 1


def test_without_room_an_open_microbatch_is_made_smaller_once(
    start: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def as_before(experiment: Any, workdir: Path) -> tuple[Any, str]:
        return changed(experiment, train__microbatch_size=2), "as before"

    monkeypatch.setattr(commanded, "chosen_before", as_before)
    training = Training(FULL, True)
    flags = [("train.microbatch_size", "auto"), ("train.batch_size", "32")]
    assert start(training, *flags) == 0
    assert [experiment.train.microbatch_size for experiment, _ in training.calls] == [2, 1]
    assert "with train.microbatch_size=1 instead of 2\n" in capsys.readouterr().err
    again = Training(FULL, FULL, True)
    with pytest.raises(InputError, match=r"smaller \(it is 1\)"):
        start(again, *flags)
    assert len(again.calls) == 2


def test_other_failures_pass_through(start: Any):
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        start(Training(jax.errors.JaxRuntimeError("INTERNAL: no such luck")))


def test_a_run_needs_a_folder(start: Any):
    with pytest.raises(InputError, match="--workdir is required"):
        start(Training(), workdir=False)
