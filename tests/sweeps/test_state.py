import json
from dataclasses import replace

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import to_dict
from jaxpretrain.storage.run_documents import SweepFile
from jaxpretrain.sweeps.cost import compare, costs, first_setting, setting_of
from jaxpretrain.sweeps.parsing import make_sweep
from jaxpretrain.sweeps.state import (
    find_states,
    make_document,
    read_earlier,
    require_extension,
    with_control_of,
    write_document,
)
from jaxpretrain.train.workdir import lock
from tests.sweeps.tiny import tiny_sweep


@pytest.fixture
def sweep(tmp_path):
    return tiny_sweep(tmp_path)


def written(sweep, folder, states):
    """Writes `sweep.json` as a sweep does, and reads it as a later start does."""
    found = costs(sweep, None)
    comparison = compare(found, first_setting(sweep, sweep.control))
    document = make_document(sweep, states, found, comparison, None)
    write_document(folder, document)
    assert json.loads((folder / "sweep.json").read_text())["control"] == document["control"]
    return read_earlier(folder)


def train(sweep, folder, run, last_saved=4, **changes):
    """Writes what a run leaves behind."""
    experiment = costs(sweep, None)[setting_of(run)].experiment
    experiment = replace(experiment, seed=run.seed, **changes)
    (folder / run.folder).mkdir(parents=True)
    document = {"config": to_dict(experiment), "last_saved": last_saved}
    (folder / run.folder / "experiment.json").write_text(json.dumps(document))
    (folder / run.folder / "metrics.jsonl").write_text("")


def states_of(sweep, folder, earlier, *, retry_failed=False):
    return find_states(folder, sweep, earlier, costs(sweep, None), retry_failed=retry_failed)


def test_the_document_says_what_is_planned_and_equal(sweep, tmp_path):
    found = costs(sweep, None)
    document = make_document(sweep, {}, found, compare(found, "d_ff=32"), None)
    assert (document["control"], document["control_reason"]) == (
        "d_ff=32",
        "the config as it stands",
    )
    assert document["equal"] == ["tokens", "evaluation_sets", "batch_size"]
    assert document["differences"][0].startswith("d_ff=40: ")
    assert document["planned"]["device_hours"] is None
    assert document["planned"]["flops"] == 2 * sum(cost.flops for cost in found.values())
    assert document["planned"]["programs"] == 2
    assert document["planned"]["settings"]["d_ff=40"]["tokens"] == 512
    assert [arm["name"] for arm in document["arms"]] == ["d_ff=32", "d_ff=40"]
    assert document["arms"][1]["runs"][1] == {
        "folder": "d_ff=40/seed6199",
        "seed": 6199,
        "tuned": (),
        "state": "waiting",
    }


def test_a_new_folder_knows_nothing(sweep, tmp_path):
    assert read_earlier(tmp_path) is None
    assert set(states_of(sweep, tmp_path, None).values()) == {"waiting"}


def test_the_folder_of_a_run_is_none_of_a_sweep(tmp_path):
    (tmp_path / "experiment.json").write_text("{}")
    with pytest.raises(InputError, match="is the folder of a run"):
        read_earlier(tmp_path)


def test_a_damaged_document_is_named(tmp_path):
    (tmp_path / "sweep.json").write_text('{"config": "x", "control": 3}')
    with pytest.raises(InputError, match=r"sweep.json: control: "):
        read_earlier(tmp_path)


def test_more_seeds_arms_and_values_extend_a_sweep(sweep, tmp_path):
    earlier = written(sweep, tmp_path, {})
    for changes in (
        {"grid": {"model.d_ff": ["32", "40", "48"]}},
        {"grid": {"model.d_ff": ["40", "32"]}, "seeds": 4},
    ):
        more = make_sweep(sweep.config, **({"grid": {"model.d_ff": ["32", "40"]}} | changes))
        require_extension(tmp_path, earlier, more)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"shared": {"eval.every": "2"}}, "shared.eval.every was absent, is 2"),
        ({"control": "d_ff=40"}, "control was d_ff=32, is d_ff=40"),
        ({"seeds": 2}, "it has d_ff=32/seed6200, and this one has not"),
        ({"grid": {"model.d_ff": ["32", "48"]}}, "arms.d_ff=40.model.d_ff was 40, is absent"),
        ({"tune": {"optim.weight_decay": ["0.1", "0.2"]}}, "it has d_ff=32/seed6198, and"),
    ],
)
def test_another_sweep_is_refused(tmp_path, changes, line):
    sweep = tiny_sweep(tmp_path, seeds=3)
    earlier = written(sweep, tmp_path, {})
    other = make_sweep(
        sweep.config, **({"grid": {"model.d_ff": ["32", "40"]}, "seeds": 3} | changes)
    )
    with pytest.raises(InputError) as error:
        require_extension(tmp_path, earlier, other)
    assert f"holds another sweep: {line}" in str(error.value)


def test_a_run_is_done_when_its_last_step_is_saved(sweep, tmp_path):
    first, second, third, fourth = sweep.runs()
    earlier = written(sweep, tmp_path, {run.folder: "done" for run in (first, second, fourth)})
    train(sweep, tmp_path, first)
    train(sweep, tmp_path, second, last_saved=2)
    train(sweep, tmp_path, third)  # an engine has run it, or the sweep could not note that
    assert states_of(sweep, tmp_path, earlier) == {
        first.folder: "done",
        second.folder: "stopped",
        third.folder: "done",
        fourth.folder: "waiting",
    }


def test_failed_runs_stay_so_unless_they_are_to_be_tried_again(sweep, tmp_path):
    first, second, *_ = sweep.runs()
    earlier = written(sweep, tmp_path, {first.folder: "failed", second.folder: "failed"})
    train(sweep, tmp_path, first)
    found = states_of(sweep, tmp_path, earlier)
    assert (found[first.folder], found[second.folder]) == ("failed", "failed")
    found = states_of(sweep, tmp_path, earlier, retry_failed=True)
    assert (found[first.folder], found[second.folder]) == ("stopped", "waiting")


def test_a_run_that_was_changed_by_hand_is_refused(sweep, tmp_path):
    first, second, *_ = sweep.runs()
    experiment = costs(sweep, None)["d_ff=32"].experiment
    train(sweep, tmp_path, first, checkpoint=replace(experiment.checkpoint, keep_last=5))
    assert states_of(sweep, tmp_path, None)[first.folder] == "done"
    train(sweep, tmp_path, second, train=replace(experiment.train, duration=9))
    with pytest.raises(InputError) as error:
        states_of(sweep, tmp_path, None)
    assert str(error.value).startswith(f"{tmp_path / second.folder} was changed by hand: ")
    assert "train.duration is 9 there, and the sweep has 4" in str(error.value)


def test_another_seed_in_a_run_is_refused(sweep, tmp_path):
    first, *_ = sweep.runs()
    train(sweep, tmp_path, replace(first, seed=5))
    with pytest.raises(InputError, match="seed is 5 there, and the sweep has 6198"):
        states_of(sweep, tmp_path, None)


def test_a_run_that_still_trains_is_refused(sweep, tmp_path):
    first, *_ = sweep.runs()
    train(sweep, tmp_path, first)
    with lock(tmp_path / first.folder), pytest.raises(InputError, match="another process trains"):
        states_of(sweep, tmp_path, None)


def test_an_extension_keeps_the_control_of_the_first_start(tmp_path):
    grid = {"model.d_ff": ["40", "48"]}
    first = tiny_sweep(tmp_path, grid=grid)
    earlier = SweepFile("c", first.control)
    later = tiny_sweep(tmp_path / "later", grid={"model.d_ff": ["40", "48", "32"]})
    assert (first.control, later.control) == ("d_ff=40", "d_ff=32")
    assert with_control_of(earlier, later).control == "d_ff=40"
    assert with_control_of(SweepFile("c", "gone"), later).control == "d_ff=32"
