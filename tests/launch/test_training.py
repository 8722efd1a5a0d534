from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.launch.training import check_training, engine_name

GIVEN = ["--config=olmo_nano", "--workdir=/shared/runs/Nano_2"]


def test_flags_are_kept_as_they_were_given():
    flags = [*GIVEN, "--config.train.duration=20 steps", "--allow_config_change"]
    training = check_training(flags)
    assert training.flags == tuple(flags)
    assert (training.workdir, training.name) == (Path("/shared/runs/Nano_2"), "nano-2")
    assert "'--config.train.duration=20 steps'" in training.quoted


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=olmo_nano"], "--workdir is required after --"),
        ([*GIVEN, "--worker=1"], "unknown flag --worker. Did you mean --workdir?"),
        ([*GIVEN, "--config.train.durations=1"], "durations: no such field .* 'duration'?"),
        (
            [*GIVEN, "--config.train.duration=soon"],
            "train.duration: duration 'soon': 'soon' is not",
        ),
        (["--config=olmo_nino", GIVEN[1]], "Did you mean 'olmo_nano'"),
        ([*GIVEN, "--process_id=1"], "--process_id: leave it out after --"),
        ([*GIVEN, "--help_config=optim"], "nothing would be trained"),
    ],
)
def test_what_training_would_refuse_is_refused_before(flags: list[str], message: str):
    with pytest.raises(InputError, match=message):
        check_training(flags)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--config.mesh.tensor=5", "needs 5 devices, or a multiple of that, and there are 24"),
        ("--config.train.batch_size=32", "does not divide over 24 data-parallel devices"),
        ("--config.train.microbatch_size=5", "microbatch_size=5 does not divide the 2 examples"),
    ],
)
def test_devices_that_do_not_fit_are_refused_before(setting: str, message: str):
    given = [*GIVEN, "--config.train.batch_size=48", setting]
    check_training(given)
    with pytest.raises(InputError, match=message):
        check_training(given, num_devices=24)


def test_what_is_chosen_on_the_devices_is_not_checked_before():
    given = [*GIVEN, "--config.train.batch_size=48", "--config.train.microbatch_size=auto"]
    check_training(given, num_devices=24)
    check_training([*given, "--config.mesh=auto"], num_devices=7)


def test_data_and_folder_are_not_opened():
    check_training([*GIVEN, "--config.data.root=/nowhere"])


def test_a_process_that_an_engine_has_placed_may_say_so():
    flags = [*GIVEN, "--coordinator=a:1", "--num_processes=2", "--process_id=1"]
    assert check_training(flags, has_place=True).flags == tuple(flags)


@pytest.mark.parametrize(
    ("folder", "name"),
    [("runs/olmo7b", "olmo7b"), ("runs/7b", "run-7b"), ("a/" + "x" * 60, "x" * 40)],
)
def test_names_are_such_as_every_engine_takes(folder: str, name: str):
    assert engine_name(Path(folder)) == name
