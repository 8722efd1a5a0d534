"""The search finds the fastest that fits, and compiles little."""

import dataclasses
import itertools
import math
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.devices.chips import CHIPS
from jaxpretrain.planning.compiled import Compiled
from jaxpretrain.planning.estimates import estimate_memory, estimate_time
from jaxpretrain.planning.machines import Machine, parse_target, placeholder_devices
from jaxpretrain.planning.search import (
    MICROBATCH,
    REMAT,
    SCAN,
    choose_dimensions,
    list_arrangements,
    list_overrides,
    search,
)
from jaxpretrain.train.experiment import Experiment
from jaxpretrain.train.program import Memory, make_program
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
    # A scan keeps several times as much where nothing is recomputed.
    assert [a.program.experiment.model.remat for a in found] == ["attention", "dots", "full"]
    assert all(a.sizes == (1, 2, 4, 8, 16) for a in found)


def ways(experiment: Experiment, machine: Machine, *searched: str) -> list[tuple[str, bool]]:
    """Policies, each with whether layers are scanned."""
    found = list_arrangements(experiment, machine, searched)
    return [
        (a.program.experiment.model.remat, a.program.experiment.model.scan_layers) for a in found
    ]


def test_layers_are_unrolled_only_where_that_does_not_keep_more(decoder, one):
    sensible = [("none", False), ("attention", True), ("dots", True), ("dots", False)]
    assert ways(decoder, one, REMAT, SCAN) == [*sensible, ("full", True)]
    # What the user has chosen stays.
    unrolled = changed(decoder, model__scan_layers=False)
    policies = ("none", "attention", "dots", "full")
    assert ways(unrolled, one, REMAT) == [(policy, False) for policy in policies]
    kept = changed(decoder, model__remat="none")
    assert ways(kept, one, SCAN) == [("none", True), ("none", False)]


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


def test_several_slices_have_a_copy_of_the_model_each(decoder):
    target = parse_target("2xtpu-v5p:2x2x1")
    devices = placeholder_devices(CHIPS["tpu-v5p"], 8, 2)
    machine = Machine(target, devices, CHIPS["tpu-v5p"], 2, compiles=False)
    open_ = dataclasses.replace(decoder, mesh="auto")
    found = list_arrangements(open_, machine, [])
    shapes = [tuple(a.program.layout.mesh.shape.values()) for a in found]
    assert shapes == [(2, 4, 1), (2, 2, 2), (2, 1, 4)]
    with pytest.raises(InputError, match="replica=1 is not a multiple of the 2 slices"):
        list_arrangements(decoder, machine, [])


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
    assert choose_dimensions([], []) == (MICROBATCH, REMAT, "mesh", SCAN)
    assert choose_dimensions([], [REMAT]) == (MICROBATCH, "mesh", SCAN)
    assert choose_dimensions([], ["mesh.fsdp", "train.batch_size"]) == (MICROBATCH, REMAT, SCAN)
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


def memory(total: float) -> Memory:
    return Memory(parameters=0, optimizer=0, gradients=0, activations=int(total), other=0)


@dataclass(frozen=True)
class Fake:
    """An arrangement whose compiled memory is `fixed + each * size`, and whose estimate is not."""

    remat: str
    fixed: float
    each: float
    speed: float  # seconds of a step with a large microbatch; smaller ones take longer
    error: float = 1.0  # the estimate's share of the truth
    scan_layers: bool = True
    overhead: float = 2.0  # of a microbatch: half of the largest one takes 3 % longer
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)

    @property
    def program(self):
        return SimpleNamespace(experiment=SimpleNamespace(model=self))

    def experiment(self, size: int):
        return (self, size)

    def memory(self, size: int) -> Memory:
        return memory(self.error * (self.fixed + self.each * size))

    def time(self, size: int):
        return SimpleNamespace(expected=self.speed * (1.0 + self.overhead / size))


@dataclass
class Compiler:
    num_workers: int = 2
    compiled: list = field(default_factory=list)

    def compile(self, experiments):
        results = []
        for arrangement, size in experiments:
            self.compiled.append((arrangement, size))
            total = int(arrangement.fixed + arrangement.each * size)
            results.append(Compiled(total, memory(total), (), 0.0))
        return results


def find(found, limit, compiler=None, deadline=math.inf):
    compiler = compiler or Compiler()
    return search(found, limit, compiler, deadline=deadline), compiler


def largest(fake: Fake, limit: int) -> int | None:
    return max((s for s in fake.sizes if fake.fixed + fake.each * s <= limit), default=None)


@pytest.mark.parametrize("error", [0.5, 0.8, 1.0, 1.25, 2.0])
@pytest.mark.parametrize(("fixed", "each"), [(100, 1), (100, 10), (10, 50), (0, 1000)])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_largest_microbatch_that_fits_is_found_whatever_the_estimates(
    error, fixed, each, workers
):
    fake = Fake("full", fixed, each, 1.0, error)
    for limit in (150, 333, 800, 10_000, 100_000):
        trials, compiler = find([fake], limit, Compiler(workers))
        assert [t.size for t in trials] == [s for s in [largest(fake, limit)] if s]
        assert all(trial.is_largest for trial in trials)
        assert len(compiler.compiled) == len(set(compiler.compiled)) <= len(fake.sizes)


def test_good_estimates_need_two_compilations():
    _, compiler = find([Fake("full", 100, 10, 1.0, error=1.05)], 300)
    assert sorted(size for _, size in compiler.compiled) == [16, 32]


@pytest.mark.parametrize(("limit", "sizes"), [(640, [4, 8]), (450, [4])])
def test_what_is_far_too_large_is_not_compiled(limit: int, sizes: list[int]):
    """Twice the memory of what fits with room for little more."""
    for workers in (1, 2):
        (trial,), compiler = find([Fake("full", 0, 100, 1.0)], limit, Compiler(workers))
        assert (trial.size, trial.is_largest) == (4, True)
        assert [size for _, size in compiler.compiled] == sizes


def test_what_fits_comes_fastest_first_with_one_of_each_policy():
    fakes = [
        Fake("full", 100, 1, 4.0),
        Fake("dots", 100, 5, 3.0),
        Fake("dots", 100, 5, 9.0),
        Fake("none", 100, 500, 2.0),  # does not fit at all
        Fake("attention", 100, 3, 3.5),
    ]
    trials, _ = find(fakes, 400)
    assert [trial.experiment[0] for trial in trials] == [fakes[1], fakes[4], fakes[0], fakes[2]]


def test_who_wants_the_fastest_alone_compiles_no_more_than_that_takes():
    fakes = [Fake("full", 100, 1, 4.0), Fake("dots", 100, 5, 3.0), Fake("none", 100, 500, 2.0)]
    compiler = Compiler()
    flags = {"deadline": math.inf}
    (trial,) = search(fakes, 500, compiler, goal="fastest", **flags)
    assert trial.experiment == (fakes[1], 64)
    assert {fake for fake, _ in compiler.compiled} == {fakes[1]}
    # An estimate that promised too much is not the last word.
    promising = Fake("none", 100, 100, 2.5, error=0.2, overhead=0.5)
    trials = search([*fakes, promising], 500, Compiler(), goal="fastest", **flags)
    assert trials[0].experiment[0] == promising
    assert trials[0].size == 4
    trials = search([*fakes, promising], 180, Compiler(), goal="fastest", **flags)
    assert trials[0].experiment == (fakes[1], 16)


def test_equal_times_go_by_memory():
    slim, wide = Fake("full", 100, 1, 1.0), Fake("dots", 300, 1, 1.0)
    trials, _ = find([wide, slim], 1000)
    assert [trial.experiment[0] for trial in trials] == [slim, wide]


def test_of_plans_that_are_as_fast_the_one_with_most_room_is_the_best():
    wide = Fake("dots", 500, 1, 1.0)
    slim, slow = Fake("dots", 100, 1, 1.015, scan_layers=False), Fake("full", 10, 1, 2.0)
    for compiler in (Compiler(), None):
        trials = search([wide, slow, slim], 10_000, compiler, deadline=math.inf)
        assert [trial.experiment[0] for trial in trials] == [slim, wide, slow]
    slim = replace(slim, speed=1.04)
    trials, _ = find([wide, slow, slim], 10_000)
    assert [trial.experiment[0] for trial in trials] == [wide, slim, slow]


@pytest.mark.parametrize(
    ("each", "limit", "overhead", "sizes"),
    [
        (10, 740, 1.0, [32, 64]),  # 1.5 % longer, and all of the limit is taken
        (10, 740, 2.0, [64]),  # 3 % longer
        (10, 1500, 1.0, [64]),  # there is room enough
        (1000, 1100, 1.0, [1]),  # there is no smaller one
    ],
)
def test_where_room_is_short_a_smaller_microbatch_that_is_as_fast_is_the_best(
    each: float, limit: int, overhead: float, sizes: list[int]
):
    for goal in ("frontier", "fastest"):
        fakes = [Fake("dots", 100, each, 1.0, overhead=overhead)]
        trials = search(fakes, limit, Compiler(), goal=goal, deadline=math.inf)
        assert [trial.size for trial in trials] == sizes


def test_what_estimates_give_up_on_is_tried_before_nothing_is_said_to_fit():
    fake = Fake("full", 100, 10, 1.0, error=5.0)
    trials, _ = find([fake], 200)
    assert [trial.size for trial in trials] == [8]


def test_nothing_fits():
    assert find([Fake("full", 100, 10, 1.0)], 50)[0] == []


def test_after_the_deadline_nothing_is_compiled():
    trials, compiler = find([Fake("full", 100, 10, 1.0)], 500, deadline=-math.inf)
    assert (trials, compiler.compiled) == ([], [])


def test_without_a_compiler_estimates_are_the_answer():
    fakes = [Fake("full", 100, 10, 1.0), Fake("dots", 100, 20, 0.5)]
    trials = search(fakes, 300, None, deadline=math.inf)
    assert [(t.experiment[0].remat, t.size) for t in trials] == [("dots", 8), ("full", 16)]
    assert all(trial.compiled is None for trial in trials)


def test_what_a_compiler_refuses_does_not_fit():
    class Refuses(Compiler):
        def compile(self, experiments):
            return [
                Compiled(r.total, r.memory if size <= 4 else None, (), 0.0)
                for r, (_, size) in zip(super().compile(experiments), experiments, strict=True)
            ]

    trials, _ = find([Fake("full", 100, 1, 1.0)], 10_000, Refuses())
    assert [trial.size for trial in trials] == [4]


def test_every_pair_of_neighbours_is_settled():
    for fixed, each, error in itertools.product((0, 50), (7, 30), (0.7, 1.4)):
        fake = Fake("full", fixed, each, 1.0, error, overhead=100.0, sizes=tuple(range(1, 25)))
        for limit in range(60, 800, 67):
            trials, _ = find([fake], limit, Compiler(1))
            assert [t.size for t in trials] == [s for s in [largest(fake, limit)] if s]


def test_two_results_correct_an_estimate_that_is_wrong_in_proportion():
    sizes = tuple(range(1, 101))
    fake = Fake("full", 0, 10, 1.0, error=0.25, overhead=1e9, sizes=sizes)
    trials, compiler = find([fake], 505, Compiler(2))
    assert [trial.size for trial in trials] == [50]
    # The first result moves the estimates down to the smallest size; two give their slope.
    assert [size for _, size in compiler.compiled] == [100, 1, 2, 50, 51]


def test_an_estimate_is_the_largest_where_no_larger_microbatch_exists():
    fakes = [Fake("full", 100, 1, 1.0), Fake("dots", 100, 10, 0.5)]
    trials = search(fakes, 300, None, deadline=math.inf)
    assert [(t.size, t.is_largest) for t in trials] == [(16, False), (64, True)]
