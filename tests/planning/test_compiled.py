"""What compiling tells is what the compiled training step takes, elsewhere too, and only once."""

import dataclasses
import json
from dataclasses import asdict, replace
from pathlib import Path

import jax
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.planning import compiled as compiling
from jaxpretrain.planning.compiled import Buffer, ProcessPoolCompiler, compile_step, eval_bytes
from jaxpretrain.planning.machines import Machine, parse_target
from jaxpretrain.train.program import make_program, measured
from tests.planning.conftest import changed


@pytest.mark.parametrize("family", ["decoder", "autoencoder"])
@pytest.mark.parametrize("machine", ["one", "eight"])
def test_memory_is_that_of_the_program_that_trains(family, machine, request):
    experiment = changed(request.getfixturevalue(family), train__microbatch_size=2)
    machine = request.getfixturevalue(machine)
    compiled = compile_step(experiment, machine)
    trained = make_program(experiment, machine.devices).compile().memory_analysis()
    assert compiled.memory is not None
    temporaries = compiled.memory.gradients + compiled.memory.activations
    returned = trained.output_size_in_bytes - trained.alias_size_in_bytes
    assert temporaries == trained.temp_size_in_bytes + returned
    arguments = trained.argument_size_in_bytes + trained.generated_code_size_in_bytes
    assert compiled.total == temporaries + arguments


def test_the_state_is_told_apart(decoder, eight):
    program = make_program(decoder, eight.devices)
    memory = compile_step(decoder, eight).memory
    assert memory is not None
    num_params = sum(x.size for x in program.state.params["blocks"]["0"]["query"].values())
    assert memory.parameters * 8 >= 4 * num_params
    # Adam's two moments lie as their parameters do; counts take a few bytes more.
    assert 0 <= memory.optimizer - 2 * memory.parameters < 64
    assert memory.gradients == memory.parameters
    assert memory.total == measured(program, program.compile()).total


def test_smaller_microbatches_and_recomputation_take_less(decoder, one):
    def activations(**values: object) -> int:
        memory = compile_step(changed(decoder, **values), one).memory
        assert memory is not None
        return memory.activations

    whole, kept = activations(), activations(model__remat="none")
    assert activations(train__microbatch_size=4) < whole < kept


def test_the_largest_buffers_are_named(decoder, one):
    # A batch that no other test has: what JAX's cache has kept is not compiled, and tells nothing.
    alone = changed(decoder, model__remat="none", train__batch_size=12)
    buffers = compile_step(alone, one, buffers=True).buffers
    assert buffers
    assert [b.bytes for b in buffers] == sorted((b.bytes for b in buffers), reverse=True)
    # What the backward pass keeps of all four layers: 12 sequences of 64 tokens by 32 channels.
    assert any("f32[4," in buffer.shapes for buffer in buffers)


def test_evaluation_takes_the_state_and_less_than_training_on_top(decoder, one):
    experiment = changed(decoder, model__remat="none")
    memory = compile_step(experiment, one).memory
    assert memory is not None
    state = memory.parameters + memory.optimizer
    assert state < eval_bytes(experiment, one) < memory.total


def test_other_errors_of_compilers_are_not_taken_for_a_lack_of_memory(decoder, one: Machine):
    wrong = dataclasses.replace(one, compiler_options={"xla_no_such_option": True})
    with pytest.raises(Exception, match="xla_no_such_option"):
        compile_step(decoder, wrong)


@pytest.fixture
def cached(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXPRETRAIN_CACHE", str(tmp_path))


def test_other_processes_compile_the_same_and_only_once(decoder, eight: Machine, cached):
    experiments = [changed(decoder, train__microbatch_size=size) for size in (1, 2)]
    told = []
    # The processes inherit the eight virtual devices of the tests.
    target = parse_target(f"cpu:{jax.device_count()}")
    setup = target, "float32", 1, lambda experiment, result: told.append((experiment, result))
    with ProcessPoolCompiler(*setup) as workers:
        first = workers.compile(experiments)
        with pytest.raises(InputError, match="microbatch_size=3 does not divide"):
            workers.compile([changed(decoder, train__microbatch_size=3)])
    assert told == list(zip(experiments, first, strict=True))
    assert [c.memory for c in first] == [compile_step(e, eight).memory for e in experiments]
    with ProcessPoolCompiler(*setup) as none_started:
        assert none_started.compile(experiments) == first
        assert not none_started._executor._processes


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"total": "1"}'])
def test_a_damaged_result_counts_as_none(decoder, one: Machine, tmp_path: Path, content: str):
    # A program that comes out of the compilation cache tells no buffers.
    compiled = replace(compile_step(decoder, one), buffers=(Buffer(2**20, "parameter 0"),))
    (tmp_path / "whole.json").write_text(json.dumps(asdict(compiled)))
    assert compiling._kept(tmp_path / "whole.json") == compiled
    (tmp_path / "damaged.json").write_text(content)
    assert compiling._kept(tmp_path / "damaged.json") is None


def test_results_belong_to_what_they_depend_on(decoder, cached, monkeypatch: pytest.MonkeyPatch):
    eight, four = parse_target("cpu:8"), parse_target("cpu:4")
    paths = {
        compiling._path(decoder, eight),
        compiling._path(decoder, four),
        compiling._path(changed(decoder, model__remat="dots"), eight),
    }
    monkeypatch.setattr(compiling, "_code", lambda: "changed")
    assert len(paths | {compiling._path(decoder, eight)}) == 4
