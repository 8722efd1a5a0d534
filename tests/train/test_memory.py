"""The memory of a step is what its compiler says, divided into what it is for."""

from types import SimpleNamespace
from typing import Any

import jax
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.train import memory
from jaxpretrain.train.memory import Memory, measured, require_fit
from jaxpretrain.train.program import Program

GIB = 2**30


def test_all_parts_are_in_the_total_and_in_the_line():
    parts = Memory(8 * GIB, 4 * GIB, 2 * GIB, GIB, GIB // 2)
    assert parts.total == 15.5 * GIB
    assert parts.describe() == (
        "15.50 GiB per device (parameters 8.00, optimizer 4.00, gradients 2.00, activations 1.00, "
        "other 0.50)"
    )


def _bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _compiled(program: Program, working: int, **more: int) -> Any:
    """A step whose compiler says that it takes `working` bytes beside its arguments."""
    arguments = _bytes(program.state.params) + _bytes(program.state.optimizer) + 100
    stats = {
        "argument_size_in_bytes": arguments,
        "generated_code_size_in_bytes": 7,
        "temp_size_in_bytes": working - 30,
        "output_size_in_bytes": arguments + 30,
        "alias_size_in_bytes": arguments,
    }
    analysis = SimpleNamespace(**stats | more)
    return SimpleNamespace(memory_analysis=lambda: analysis)


def test_the_working_memory_is_the_gradients_and_the_rest_activations(program: Program):
    weights = _bytes(program.state.params)
    found = measured(program, _compiled(program, weights + 5000))
    assert found == Memory(weights, _bytes(program.state.optimizer), weights, 5000, 107)
    # Gradients that are used up as they come never exist at once.
    found = measured(program, _compiled(program, weights - 1))
    assert (found.gradients, found.activations) == (weights - 1, 0)


def test_microbatches_are_added_to_a_second_set_of_gradients(program: Program):
    weights = _bytes(program.state.params)
    halves: Any = SimpleNamespace(state=program.state, layout=program.layout, num_microbatches=2)
    found = measured(halves, _compiled(program, 2 * weights + 9))
    assert (found.gradients, found.activations) == (2 * weights, 9)


def test_on_tpus_it_is_the_peak_that_counts(program: Program):
    device = SimpleNamespace(platform="tpu")
    devices = SimpleNamespace(flat=[device])
    layout = SimpleNamespace(mesh=SimpleNamespace(devices=devices))
    there: Any = SimpleNamespace(state=program.state, layout=layout, num_microbatches=1)
    weights = _bytes(program.state.params)
    arguments = weights + _bytes(program.state.optimizer) + 100
    compiled = _compiled(program, 10**9, peak_memory_in_bytes=arguments + weights + 11)
    assert measured(there, compiled).activations == 11


def test_a_step_is_refused_from_the_first_byte_that_is_too_much(
    program: Program, monkeypatch: pytest.MonkeyPatch
):
    compiled = _compiled(program, 3 * GIB)
    needed = measured(program, compiled).total
    monkeypatch.setattr(memory, "memory_limit", lambda device: needed)
    assert require_fit(program, compiled).total == needed
    monkeypatch.setattr(memory, "memory_limit", lambda device: None)
    assert require_fit(program, compiled).total == needed
    monkeypatch.setattr(memory, "memory_limit", lambda device: needed - 1)
    message = r"does not fit: it takes 3\.0\d GiB per device .* of the 3\.0\d GiB there are"
    with pytest.raises(InputError, match=message):
        require_fit(program, compiled)
