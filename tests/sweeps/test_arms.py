from dataclasses import replace

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.sweeps.arms import (
    Arm,
    Sweep,
    arm_name,
    classes_first,
    short_names,
    with_changes,
)

OFF = Arm("off", (("model.qk_norm", "false"),))
ON = Arm("on", (("model.qk_norm", "true"),))
SWEEP = Sweep("olmo_nano", (("seed", "7"),), (OFF, ON))


def test_runs_come_seed_by_seed_with_all_their_overrides():
    runs = with_changes(SWEEP, seeds=2).runs()
    folders = ["off/seed7", "on/seed7", "off/seed8", "on/seed8"]
    assert [run.folder for run in runs] == folders
    assert [run.seed for run in runs] == [7, 7, 8, 8]
    assert runs[3].overrides == (("seed", "7"), ("seed", "8"), ("model.qk_norm", "true"))
    experiment = SWEEP.experiment(runs[2])
    assert (experiment.seed, experiment.model.qk_norm) == (8, False)


def test_nuisance_settings_are_part_of_the_run_and_not_of_the_arm():
    tune = {"optim.schedule.peak": ("1e-3", "3e-3")}
    runs = with_changes(replace(SWEEP, tune=tune), seeds=3).runs()
    assert len(runs) == 12
    assert [run.folder for run in runs[:2]] == ["off/peak=1e-3/seed7", "off/peak=3e-3/seed7"]
    assert {run.arm for run in runs} == {"off", "on"}
    assert SWEEP.experiment(runs[1]).optim.schedule.peak == 3e-3


@pytest.mark.parametrize(
    ("arms", "control", "reason"),
    [
        ((OFF, ON), "on", "the config as it stands"),
        ((OFF, Arm("wide", (("model.d_ff", "512"),))), "off", "the first arm"),
    ],
)
def test_the_control_is_the_config_as_it_stands_or_else_the_first_arm(arms, control, reason):
    sweep = with_changes(replace(SWEEP, arms=arms), seeds=2)
    assert (sweep.control, sweep.control_reason) == (control, reason)


def test_a_control_that_is_named_stays_when_seeds_are_added():
    sweep = with_changes(SWEEP, seeds=2, control="off")
    assert sweep.control == "off"
    assert with_changes(sweep, seeds=4) == replace(sweep, seeds=(7, 8, 9, 10))


@pytest.mark.parametrize(
    ("sweep", "changes", "message"),
    [
        (SWEEP, {"seeds": 1}, r"--seeds=1: an interval takes 2 seeds or more"),
        (SWEEP, {"seeds": 0}, r"--seeds=0: an interval takes 2 seeds or more"),
        (
            replace(SWEEP, tune={"optim.schedule.peak": ("1e-3", "3e-3")}),
            {"seeds": 2},
            r"--seeds=2: an interval takes 3 seeds or more: one chooses",
        ),
        (SWEEP, {"seeds": 2, "control": "onn"}, r"--control=onn: no such arm. Did you mean 'on'\?"),
        (replace(SWEEP, arms=(OFF, OFF)), {"seeds": 2}, r"two arms are called off"),
        (
            replace(SWEEP, arms=(OFF, replace(OFF, name="also_off"))),
            {"seeds": 2},
            r"off and also_off are the same run: leave one out",
        ),
        (
            replace(SWEEP, tune={"optim.schedule.peak": ("1e-3", "0.001")}),
            {"seeds": 3},
            r"off peak=1e-3 and off peak=0.001 are the same run",
        ),
        (
            SWEEP,
            {"seeds": 2, "shared": (("modle.d_ff", "1"),)},
            r"Did you mean --config.model.d_ff\?",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(sweep, changes, message):
    with pytest.raises(InputError, match=message):
        with_changes(sweep, **changes)


def test_shared_settings_can_be_added():
    sweep = with_changes(SWEEP, seeds=2, shared=(("model.qk_norm", "true"),))
    assert sweep.base.model.qk_norm
    assert sweep.control == "on"


def test_classes_are_chosen_before_their_fields_are_set():
    overrides = [("optim.betas", "0.9,0.98"), ("seed", "1"), ("optim", "lion"), ("seed", "2")]
    expected = (("seed", "1"), ("optim", "lion"), ("seed", "2"), ("optim.betas", "0.9,0.98"))
    assert classes_first(overrides) == expected


def test_names_are_as_short_as_they_can_be():
    paths = ["model.qk_norm", "optim.schedule.peak", "data.peak", "seed"]
    short = ["qk_norm", "schedule.peak", "data.peak", "seed"]
    assert list(short_names(paths).values()) == short


def test_names_are_safe_for_folders():
    short = {"train.duration": "duration", "a.b": "b"}
    assert arm_name("", [("train.duration", "1 epochs"), ("a.b", "x/y")], short) == (
        "duration=1_epochs,b=x_y"
    )
    long = arm_name("", [("a.b", "x" * 300)], short)
    assert len(long) == 100
    assert long != arm_name("", [("a.b", "x" * 301)], short)
    for name in ("..", "../x", "-a", ".hidden", "a b"):
        with pytest.raises(InputError, match=r"a name begins with a letter or digit"):
            arm_name(name, [], short)
