"""What compiling tells is what the compiled training step takes."""

import dataclasses

import pytest

from jaxpretrain.planning.compiled import compile_step, eval_bytes
from jaxpretrain.planning.machines import Machine
from jaxpretrain.train.memory import measured
from jaxpretrain.train.program import make_program
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
