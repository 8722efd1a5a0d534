from dataclasses import replace

import pytest

from jaxpretrain.config.durations import Pace
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.config.serialize import diff, from_dict, to_dict
from jaxpretrain.data.text.mixture import Mixture, MixtureSource, MixtureStage
from jaxpretrain.train.experiment import Experiment, Stage
from jaxpretrain.train.resolved import Resolved, Timeline, resolve


def _changed(experiment: Experiment, *overrides: tuple[str, str]) -> Experiment:
    return apply_overrides(experiment, overrides)


def test_durations_become_whole_steps_rounded_up(experiment: Experiment):
    """A step is 16 sequences of 16 tokens."""
    resolved = resolve(
        _changed(
            experiment,
            ("train.duration", "1e6 tokens"),
            ("optim.schedule.warmup", "1025 tokens"),
            ("eval.every", "100 sequences"),
            ("checkpoint.every", "7 steps"),
            ("checkpoint.keep_every", "2 epochs"),
            ("data.num_examples", "40"),
        )
    )
    assert resolved.train.duration == 3907  # 1e6 / 256 = 3906.25
    assert resolved.optim.schedule.warmup == 5
    assert resolved.eval.every == 7
    assert resolved.checkpoint.every == 7
    assert resolved.checkpoint.keep_every == 5


def test_two_trillion_tokens_of_olmo_7b(experiment: Experiment):
    big = _changed(
        experiment,
        ("train.duration", "2e12 tokens"),
        ("train.batch_size", "2048"),
        ("data.seq_len", "2048"),
    )
    assert resolve(big).train.duration == 476_838


def test_resolving_changes_nothing_else_and_is_final(experiment: Experiment):
    resolved = resolve(experiment)
    paths = [path for path, _, _ in diff(to_dict(experiment), to_dict(resolved))]
    assert paths == [
        "checkpoint.every",
        "eval.every",
        "monitor.every",
        "monitor.signals_every",
        "optim.schedule.warmup",
        "train.duration",
    ]
    assert resolve(resolved) == resolved
    assert from_dict(Resolved, to_dict(resolved)) == resolved


def test_the_timeline_holds_what_the_config_says_in_steps(experiment: Experiment):
    changes = {
        "train.duration": "20 steps",
        "train.stages.0.duration": "2 steps",
        "train.stages.0.batch_size": "4",
        "train.stages.1.duration": "24 sequences",
        "train.stages.1.batch_size": "8",
        "eval.every": "0 steps",
        "checkpoint.every": "72 sequences",
        "checkpoint.keep_every": "0 steps",
        "monitor.every": "9 steps",
        "monitor.signals_every": "11 steps",
    }
    timeline = resolve(_changed(experiment, *changes.items())).timeline
    assert timeline == Timeline(
        num_steps=20,
        pace=Pace(16, ((2, 4), (3, 8))),
        stage_ends=(2, 5),
        eval_every=0,
        save_every=8,  # 2 x 4 + 3 x 8 + 2.5 x 16
        log_every=9,
        signals_every=11,
        keep_every=None,
    )
    assert [list(timeline.pace.samples(step)) for step in (2, 3)] == [
        [*range(4, 8)],
        [*range(8, 16)],
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (("train.batch_size", "0"), "--config.train.batch_size=0: must be from 1 to 16777216"),
        (
            ("train.microbatch_size", "-1"),
            "--config.train.microbatch_size=-1: must be from 1 to 16777216",
        ),
        (("eval.max_examples", "0"), "--config.eval.max_examples=0: must be positive"),
        (("checkpoint.keep_last", "0"), "--config.checkpoint.keep_last=0: must be positive"),
        (("data.seq_len", "0"), "--config.data.seq_len=0: must be from 2 to 134217728"),
    ],
)
def test_what_cannot_be_is_one_line(experiment: Experiment, override, message: str):
    with pytest.raises(InputError, match=message):
        resolve(_changed(experiment, override))


def test_epochs_are_counted_where_the_data_declares_no_number(experiment: Experiment):
    num_examples = experiment.data.open(seed=0, limits={"tokens": 64}).num_examples
    epochs = _changed(experiment, ("train.duration", "2 epochs"), ("eval.every", "0.5 epochs"))
    resolved = resolve(epochs)
    assert resolved.train.duration == -(-2 * num_examples // 16)
    assert resolved.eval.every == -(-num_examples // 32)
    assert resolved.data.num_examples == num_examples
    assert resolve(resolved) == resolved
    assert resolve(experiment).data.num_examples is None  # nothing asked for it


def test_declared_epochs_need_no_data(experiment: Experiment):
    elsewhere = ("data.root", "nowhere"), ("train.duration", "2 epochs")
    declared = resolve(_changed(experiment, *elsewhere, ("data.num_examples", "40")))
    assert declared.train.duration == 5
    with pytest.raises(
        InputError, match="--config.train.duration: .*set data.num_examples.*nowhere"
    ):
        resolve(_changed(experiment, *elsewhere))


def test_epochs_of_a_mixture_are_counted_with_its_stages(experiment: Experiment):
    source = MixtureSource(root=experiment.data.root)
    late = MixtureStage(at="3 steps", weights={"a": 0.5, "b": 1.0})
    data = Mixture(sources={"a": source, "b": source}, stages=(late,), seq_len=16, window=30)
    mixed = replace(experiment, data=data, train=replace(experiment.train, duration="2 epochs"))
    resolved = resolve(mixed)
    stages = (replace(late, at=48),)
    counted = replace(data, stages=stages).open(seed=0, limits={"tokens": 64}).num_examples
    assert resolved.data.stages == stages and resolved.data.num_examples == counted
    assert resolved.train.duration == -(-2 * counted // 16)
    train = replace(mixed.train, stages=(Stage("1 epochs", 8),))
    with pytest.raises(InputError, match=r"train\.stages\.0\.duration.* need data.num_examples"):
        resolve(replace(mixed, train=train))
