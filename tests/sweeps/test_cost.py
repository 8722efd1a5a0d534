from dataclasses import replace

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.schema import Mark, marks_at
from jaxpretrain.planning.machines import parse_target
from jaxpretrain.sweeps.cost import (
    compare,
    costs,
    equalised,
    first_setting,
    require_equal,
    setting_of,
)
from jaxpretrain.sweeps.parsing import make_sweep
from jaxpretrain.train.experiment import Experiment
from tests.sweeps.tiny import tiny_sweep

LOCAL = parse_target("local")


def test_costs_are_known_without_compiling(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxpretrain.sweeps.cost.compile_step", lambda *_: pytest.fail("compiles"))
    found = costs(tiny_sweep(tmp_path), LOCAL)
    assert list(found) == ["d_ff=32", "d_ff=40"]
    small, large = found.values()
    assert (small.unit, small.units, small.units_of_last) == ("tokens", 4 * 8 * 16, 8 * 16)
    assert (small.steps, small.batch_size) == (4, 8)
    assert large.parameters - small.parameters == 3 * 8 * 16
    assert large.flops - small.flops == 6 * 3 * 8 * 16 * small.units
    assert small.memory_bytes and small.hours
    assert small.device_hours == pytest.approx(8 * small.hours)


def test_without_a_machine_memory_and_time_are_unknown(tmp_path):
    for cost in costs(tiny_sweep(tmp_path), None).values():
        assert (cost.memory_bytes, cost.hours, cost.device_hours) == (None, None, None)
        assert cost.flops > 0


def test_a_run_that_chooses_what_fits_has_no_memory_yet(tmp_path):
    sweep = tiny_sweep(tmp_path, shared={"train.microbatch_size": "auto"})
    for cost in costs(sweep, LOCAL).values():
        assert cost.memory_bytes is None
        assert cost.hours


def test_a_compiled_step_gives_the_memory_once_for_learning_rates(tmp_path, monkeypatch):
    compiled = []

    def compile_step(experiment, machine):
        compiled.append(experiment)
        return type("Compiled", (), {"total": 12345})

    monkeypatch.setattr("jaxpretrain.sweeps.cost.compile_step", compile_step)
    sweep = tiny_sweep(tmp_path, grid={"optim.schedule.peak": [1e-3, 1e-2]})
    found = costs(sweep, LOCAL, compiles=True)
    assert [cost.memory_bytes for cost in found.values()] == [12345, 12345]
    assert len(compiled) == 1
    assert len({cost.program for cost in found.values()}) == 2  # they are constants of the program


def test_arms_that_differ_in_data_alone_are_one_program(tmp_path):
    sweep = tiny_sweep(tmp_path, grid={"data.order": ["olmo_order", "olmo_core_order"]})
    assert len({cost.program for cost in costs(sweep, None).values()}) == 1


def test_an_arm_that_does_not_fit_is_named(tmp_path):
    with pytest.raises(InputError, match=r"^batch_size=3: .*batch_size=3 does not divide"):
        costs(tiny_sweep(tmp_path, grid={"train.batch_size": ["8", "3"]}), LOCAL)


def compared(tmp_path, path, values, by=None):
    sweep = tiny_sweep(tmp_path, grid={path: values})
    return compare(costs(sweep, None), first_setting(sweep, sweep.control), by)


def test_more_parameters_are_named_and_fair(tmp_path):
    found = compared(tmp_path, "model.d_ff", ["32", "40"])
    assert found.refused == []
    assert found.equal == ["tokens", "evaluation_sets", "batch_size"]
    assert len(found.named) == 2
    assert "more parameters than d_ff=32" in found.named[1]


@pytest.mark.parametrize(
    ("path", "values", "line"),
    [
        ("train.duration", ["4 steps", "5 steps"], "640 tokens, duration=4_steps has 512"),
        ("data.seq_len", ["16", "8"], "evaluates with data.seq_len=8, seq_len=16 with 16"),
        ("eval.max_examples", ["none", "4"], "evaluates with eval.max_examples=4"),
    ],
)
def test_what_makes_a_comparison_unfair_is_refused(tmp_path, path, values, line):
    assert any(line in refused for refused in compared(tmp_path, path, values).refused)


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("eval.every", ["0", "2 steps"]),
        ("data.order", ["olmo_order", "olmo_core_order"]),
        ("optim.weight_decay", ["0.1", "0.2"]),
    ],
)
def test_what_training_alone_reads_may_differ(tmp_path, path, values):
    found = compared(tmp_path, path, values)
    assert (found.refused, found.named) == ([], [])


def test_a_source_may_have_the_name_of_such_a_field():
    marks = {key: marks_at(Experiment, f"data.sources.order.{key}") for key in ("weight", "root")}
    assert [Mark.SAME_SCORES in found for found in marks.values()] == [True, False]


def test_batches_may_differ_by_the_rounding_to_whole_steps(tmp_path):
    shared = {"train.duration": "500 tokens"}
    sweep = tiny_sweep(tmp_path, grid={"train.batch_size": ["8", "12"]}, shared=shared)
    found = costs(sweep, None)
    assert [cost.units for cost in found.values()] == [512, 576]
    comparison = compare(found, "batch_size=8")
    assert comparison.refused == []
    assert "batch_size=12: 50.0% more examples a batch than batch_size=8" in comparison.named


@pytest.mark.parametrize(("by", "quantity"), [("tokens", "units"), ("flops", "flops")])
def test_durations_make_arms_equal(tmp_path, by, quantity):
    shared = {"train.duration": "1000 steps"}
    arms = {"as": {}, "wide": {"model.d_ff": "64", "train.duration": "500 steps"}}
    sweep = tiny_sweep(tmp_path, grid=None, arms=arms, shared=shared)
    equal = equalised(sweep, by, costs(sweep, None), {})
    assert equal.arms[0].overrides == ()
    found = costs(equal, None)
    values = [getattr(cost, quantity) for cost in found.values()]
    assert values[0] == pytest.approx(values[1], rel=0.01)
    assert compare(found, "as", by).refused == []


def test_equal_time_needs_a_machine_and_keeps_what_it_gave_before(tmp_path):
    sweep = tiny_sweep(tmp_path)
    with pytest.raises(InputError, match="give --target"):
        equalised(sweep, "time", costs(sweep, None), {})
    found = costs(sweep, LOCAL)
    slow = {name: replace(cost, hours=2.0) for name, cost in found.items()}
    slow["d_ff=32"] = replace(slow["d_ff=32"], hours=1.0)
    control, other = equalised(sweep, "time", slow, {}).arms
    assert control.overrides == (("model.d_ff", "32"),)
    assert other.overrides[-1] == ("train.duration", "256 tokens")
    known = equalised(sweep, "time", slow, {"d_ff=40": "300 tokens"})
    assert known.arms[1].overrides[-1] == ("train.duration", "300 tokens")


def test_seeds_share_a_setting(tmp_path):
    sweep = tiny_sweep(tmp_path, tune={"optim.weight_decay": ["0.1", "0.2"]}, seeds=3)
    assert {setting_of(run) for run in sweep.runs()} == {
        f"d_ff={d_ff}/weight_decay={decay}" for d_ff in (32, 40) for decay in (0.1, 0.2)
    }
    assert first_setting(sweep, "d_ff=40") == "d_ff=40/weight_decay=0.1"


def test_the_same_length_in_other_words_is_the_same_run(tmp_path):
    sweep = tiny_sweep(tmp_path, grid={"train.duration": ["4 steps", "4"]})
    with pytest.raises(InputError, match="^duration=4_steps and duration=4 give the same results"):
        costs(sweep, None)


def test_arms_that_differ_in_what_changes_no_result_are_refused(tmp_path):
    sweep = tiny_sweep(tmp_path, grid={"monitor.every": ["1 steps", "2 steps"]})
    with pytest.raises(InputError, match="give the same results: leave one out"):
        costs(sweep, None)


def test_tuned_values_that_undo_an_equal_duration_are_refused(tmp_path):
    grid = {"model.d_ff": ["32", "64"]}
    sweep = tiny_sweep(tmp_path, grid=grid, tune={"train.batch_size": ["8", "16"]}, seeds=3)
    equal = equalised(sweep, "flops", costs(sweep, None), {})
    with pytest.raises(InputError, match="--equal=flops: .*batch_size=16 takes .* of d_ff=32, bec"):
        require_equal(equal, "flops", costs(equal, None))
    sweep = tiny_sweep(tmp_path / "untuned", grid=grid)
    equal = equalised(sweep, "flops", costs(sweep, None), {})
    require_equal(equal, "flops", costs(equal, None))


def test_what_changes_the_meaning_of_a_loss_is_named(tmp_path):
    arms = {
        "most": {},
        "half": {"model.mask_ratio": 0.5},
        "plain": {"model.normalize_patches": False},
    }
    sweep = make_sweep("sapiens_nano", arms=arms, shared={"data.num_examples": 100}, seeds=2)
    known = costs(sweep, None)
    found = compare(known, "most")
    named = found.named
    assert compare({"most": known["most"]}, "most").are_losses_comparable
    assert not found.are_losses_comparable
    assert "half: model.mask_ratio=0.5 changes what a loss measures, most has 0.75" in named
    assert any(line.startswith("plain: model.normalize_patches=False changes") for line in named)
