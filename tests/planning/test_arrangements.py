"""Which ways there are to run an experiment."""

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.planning.arrangements import (
    MICROBATCH,
    REMAT,
    choose_dimensions,
    list_arrangements,
    list_overrides,
)
from jaxpretrain.planning.estimates import estimate_memory, estimate_time
from jaxpretrain.train.program import make_program
from tests.planning.conftest import changed


def _pairs(flags: list[str]) -> list[tuple[str, str]]:
    split = [flag.removeprefix("--config.").split("=") for flag in flags]
    return [(path, value) for path, value in split]


def test_microbatches_divide_the_share_of_a_device(decoder, one, eight):
    assert [a.sizes for a in list_arrangements(decoder, one, [MICROBATCH])] == [(1, 2, 4, 8, 16)]
    assert [a.sizes for a in list_arrangements(decoder, eight, [MICROBATCH])] == [(1, 2)]


def test_what_is_not_searched_stays(decoder, one):
    fixed = changed(decoder, train__microbatch_size=4, model__remat="dots")
    (arrangement,) = list_arrangements(fixed, one, [])
    assert arrangement.sizes == (4,)
    assert arrangement.experiment(4) == fixed


def test_what_is_auto_is_searched_whatever_else_is(decoder, one):
    open_ = changed(decoder, train__microbatch_size="auto", model__remat="auto")
    found = list_arrangements(open_, one, [])
    assert {a.program.experiment.model.remat for a in found} == {
        *("none", "attention", "dots", "full")
    }
    assert all(a.sizes == (1, 2, 4, 8, 16) for a in found)


def test_all_meshes_of_the_devices_are_there_once(decoder, eight):
    found = list_arrangements(decoder, eight, ["mesh"])
    shapes = [tuple(a.program.layout.mesh.shape.values()) for a in found]
    assert len(shapes) == len(set(shapes))
    assert set(shapes) == {
        (r, f, t)
        for r in (1, 2, 4, 8)
        for f in (1, 2, 4, 8)
        for t in (1, 2, 4, 8)
        if r * f * t == 8
    }


def test_meshes_that_do_not_divide_the_batch_are_left_out(decoder, eight):
    found = list_arrangements(changed(decoder, train__batch_size=4), eight, ["mesh"])
    assert all(4 % a.program.layout.num_data == 0 for a in found)
    assert found


def test_where_no_mesh_divides_the_batch_the_reason_is_told(decoder, eight):
    with pytest.raises(InputError, match=r"batch_size=3 does not divide over 8"):
        list_arrangements(changed(decoder, train__batch_size=3), eight, [MICROBATCH])


def test_a_microbatch_that_divides_no_share_is_an_error(decoder, one):
    with pytest.raises(InputError, match=r"microbatch_size=3 divides no device's share of .*=16"):
        list_arrangements(changed(decoder, train__microbatch_size=3), one, [REMAT])


def test_flags_turn_the_experiment_into_what_was_chosen(decoder, eight):
    searched = [MICROBATCH, REMAT, "mesh", "model.attention", "model.scan_layers"]
    # A batch that few meshes divide.
    few = changed(decoder, train__batch_size=2, model__num_layers=1)
    for arrangement in list_arrangements(few, eight, searched)[::23]:
        for size in arrangement.sizes:
            chosen = arrangement.experiment(size)
            flags = list_overrides(few, chosen)
            assert apply_overrides(few, _pairs(flags)) == chosen
    assert list_overrides(decoder, decoder) == []


def test_every_family_is_searched(autoencoder, one):
    assert len(list_arrangements(autoencoder, one, ["model.scan_layers"])) == 2


def test_what_the_user_gave_is_not_searched():
    assert choose_dimensions([], []) == (MICROBATCH, REMAT, "mesh")
    assert choose_dimensions([], [REMAT]) == (MICROBATCH, "mesh")
    assert choose_dimensions([], ["mesh.fsdp", "train.batch_size"]) == (MICROBATCH, REMAT)
    assert choose_dimensions(["remat", "scan_layers"], []) == (REMAT, "model.scan_layers")


@pytest.mark.parametrize(
    ("searched", "given", "message"),
    [
        (["remit"], [], r"--search=remit: Did you mean 'remat'\?"),
        (["zzz"], [], "known: microbatch_size, remat, mesh, attention, scan_layers"),
        (["remat"], [REMAT], r"--search=remat, but --config\.model\.remat says what it is"),
        (["mesh"], ["mesh.tensor"], r"--search=mesh, but --config\.mesh\.tensor says"),
    ],
)
def test_contradictory_or_unknown_dimensions_are_errors(searched, given, message):
    with pytest.raises(InputError, match=message):
        choose_dimensions(searched, given)


def test_estimates_of_a_size_are_those_of_its_program(decoder, eight):
    (arrangement,) = list_arrangements(
        changed(decoder, train__batch_size=32, mesh__tensor=2), eight, [MICROBATCH]
    )
    assert arrangement.sizes == (1, 2, 4, 8)
    for size in arrangement.sizes:
        program = make_program(arrangement.experiment(size), eight.devices)
        assert program.num_microbatches == 8 // size
        assert arrangement.memory(size) == estimate_memory(program)
        assert arrangement.time(size) == estimate_time(program, eight.chip, num_hosts=1)
