"""Plans against everything that could be compiled."""

import math

import pytest

from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.planning.console import make_table
from jaxpretrain.planning.machines import Machine, parse_target, placeholder_devices
from jaxpretrain.planning.planner import make_plan
from jaxpretrain.planning.search import MICROBATCH, REMAT, list_arrangements
from tests.planning.conftest import changed, plan, total


@pytest.mark.parametrize(
    ("family", "machine", "values"),
    [
        ("decoder", "one", {"model__remat": "none"}),
        pytest.param(
            *("decoder", "eight", {"train__batch_size": 64, "mesh__tensor": 2}),
            marks=pytest.mark.slow,
        ),
        pytest.param("autoencoder", "one", {"train__batch_size": 8}, marks=pytest.mark.slow),
    ],
)
def test_the_largest_batch_that_compiles_inside_the_limit_is_found(
    family, machine, values, request
):
    experiment = changed(request.getfixturevalue(family), **values)
    machine = request.getfixturevalue(machine)
    (arrangement,) = list_arrangements(experiment, machine, [MICROBATCH])
    totals = {s: total(arrangement.experiment(s), machine) for s in arrangement.sizes}
    assert len(totals) >= 4
    for size, needed in totals.items():
        largest = max(s for s, bytes_ in totals.items() if bytes_ <= needed)
        made = plan(experiment, machine, limit=needed)
        (found,) = [trial for trial in made.trials if trial.is_largest]
        assert (found.size, found.total) == (made.max_size, totals[largest])
        assert made.max_size == largest
        assert largest >= size
    assert plan(experiment, machine, limit=min(totals.values()) - 1).best is None


def test_a_plan_says_whether_the_config_fits_as_it_stands(decoder, one):
    needed = total(decoder, one)
    fitting, tight = plan(decoder, one, limit=needed), plan(decoder, one, limit=needed - 1)
    assert fitting.fits_as_configured
    assert fitting.overrides(fitting.best) == []
    assert not tight.fits_as_configured
    assert tight.best.size < 16
    assert tight.overrides(tight.best) == [f"--config.train.microbatch_size={tight.best.size}"]


def test_the_flags_of_a_recommendation_make_an_experiment_that_takes_what_was_said(decoder, one):
    open_ = changed(decoder, train__microbatch_size="auto", model__remat="auto")
    limit = total(changed(decoder, train__microbatch_size=4), one) + 200_000
    found = plan(open_, one, limit=limit, searched=())
    assert found.configured is None
    assert not found.fits_as_configured
    flags = found.overrides(found.best)
    assert [flag.partition("=")[0] for flag in flags] == [
        "--config.train.microbatch_size",
        "--config.model.remat",
    ]
    pairs = [tuple(flag.removeprefix("--config.").split("=")) for flag in flags]
    assert total(apply_overrides(open_, pairs), one) == found.best.total <= limit


def test_what_fits_is_listed_fastest_first_and_the_frontier_takes_ever_less_memory(decoder, one):
    found = plan(decoder, one, searched=(MICROBATCH, REMAT))
    times = [trial.time.expected for trial in found.trials]
    assert times == sorted(times)
    totals = [trial.total for trial in found.frontier]
    assert totals == sorted(totals, reverse=True)
    assert found.frontier[0] == found.best


def test_where_nothing_fits_a_larger_machine_is_named(decoder):
    target = parse_target("h100-80gb:2")
    machine = Machine(target, placeholder_devices(target.chip, 2), target.chip, 1, compiles=False)
    # Twelve bytes of state a parameter: 13.5 million of them.
    huge = changed(decoder, model__dtype="bfloat16", model__d_ff=35_000, train__batch_size=64)
    found = make_plan(
        huge,
        machine,
        None,
        searched=(MICROBATCH, REMAT, "mesh"),
        limit=50_000_000,
        max_seconds=math.inf,
    )
    assert found.best is None
    assert found.sufficient_target is not None
    assert parse_target(found.sufficient_target).num_devices > 2
    assert f"nothing that was searched fits; {found.sufficient_target} would do" in make_table(
        found, None
    )
