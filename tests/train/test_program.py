from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.parallel.mesh import Mesh
from jaxpretrain.storage.jsonl import read_lines
from jaxpretrain.train import program as program_module
from jaxpretrain.train.experiment import Experiment, resolve
from jaxpretrain.train.program import Memory, Program, make_program, measured, require_fit
from jaxpretrain.train.run import train_experiment
from jaxpretrain.train.step import TrainState
from jaxpretrain.train.trained import load_trained


def _program(experiment: Experiment, *overrides: tuple[str, str]) -> Program:
    return make_program(resolve(apply_overrides(experiment, overrides)), jax.devices())


def test_a_program_holds_no_memory(experiment: Experiment):
    """So that a large model can be planned on a laptop."""
    huge = _program(
        experiment,
        ("model.d_model", "16384"),
        ("model.num_layers", "100"),
        ("model.d_ff", "65536"),
        ("mesh.tensor", "8"),
        ("mesh.fsdp", "1"),
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(huge.state.params)) > 4e11
    leaves = jax.tree.leaves((huge.state, huge.batch))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding for leaf in leaves)


def test_the_description_says_what_is_active(experiment: Experiment):
    facts = _program(experiment, ("train.microbatch_size", "1")).describe()
    assert facts["devices"] == ["8 x cpu as replica 1 x fsdp 8 x tensor 1, 1 process"]
    # Two layers of 4 d^2 + 3 d d_ff, and embedding and head of 64 d.
    num_params = 2 * (4 * 32**2 + 3 * 32 * 64) + 2 * 64 * 32
    assert any(line.startswith(f"{num_params:,} parameters, ") for line in facts["model"])
    assert facts["batch"] == [
        "16 = 8 devices x 2 microbatches x 1",
        "256 tokens per step, 5 steps, 1,280 tokens",
    ]
    rate = "learning rate Triangular: peak 0.01, warmup from step 0, decay from step 2"
    assert facts["optimizer"][1] == rate
    assert not any("not sharded" in line for line in facts["model"])
    assert "warning" not in facts


def test_what_the_mesh_does_not_divide_is_told(experiment: Experiment):
    facts = _program(experiment, ("model.embedding_rows", "61"), ("mesh.tensor", "2")).describe()
    (line,) = [line for line in facts["model"] if line.startswith("not sharded")]
    assert "embed/embedding" in line and "head/kernel" in line and "query" not in line


def test_evaluation_takes_what_devices_hold_of_a_microbatch(experiment: Experiment):
    assert _program(experiment).setting(None, []).batch_size == 16
    in_parts = _program(experiment, ("train.microbatch_size", "1"))
    assert in_parts.setting(None, []).batch_size == 8


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (("mesh.fsdp", "3"), "needs 3 devices, and there are 8"),
        (("train.batch_size", "12"), "train.batch_size=12 does not divide over 8"),
        (("model.num_heads", "5"), "model.num_heads"),
    ],
)
def test_what_does_not_fit_together_is_one_line(experiment: Experiment, override, message: str):
    with pytest.raises(InputError, match=message):
        _program(experiment, override)


def test_a_run_may_end_inside_its_warm_up(experiment: Experiment):
    schedule = replace(experiment.optim.schedule, warmup="1000 steps")
    experiment = replace(experiment, optim=replace(experiment.optim, schedule=schedule))
    facts = _program(experiment).describe()
    assert facts["optimizer"][1].endswith("warmup from step 0")
    assert facts["warning"] == ["the run ends inside its warm-up, before the learning rate peaks"]


def test_more_operations_take_longer_to_compile(experiment: Experiment):
    few, many, scanned = (
        _program(experiment, ("model.num_layers", layers), ("model.scan_layers", scan))
        for layers, scan in (("1", "false"), ("8", "false"), ("8", "true"))
    )
    assert few.compile_seconds() < many.compile_seconds() / 2
    assert scanned.compile_seconds() < many.compile_seconds() / 2


def test_looking_changes_nothing(experiment: Experiment, tmp_path: Path):
    """Bit for bit: the step is the same program, and the probe leaves the parameters alone."""
    params = []
    for every in (0, 1):
        monitor = replace(experiment.monitor, signals_every=every)
        workdir = tmp_path / str(every)
        assert train_experiment(resolve(replace(experiment, monitor=monitor)), workdir)
        params.append(load_trained(workdir).params)
    jax.tree.map(np.testing.assert_array_equal, *params)
    assert not (tmp_path / "0" / "signals.jsonl").exists()
    lines = read_lines(tmp_path / "1" / "signals.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    for name in ("attention_logit/blocks", "activation_rms/blocks", "grad_norm/blocks/query"):
        assert all(len(line[f"signals/{name}"]) == 2 for line in lines)
    assert all(line["signals/update_ratio/embed"] > 0 for line in lines)


def test_the_probe_looks_at_one_example_of_each_device_on_any_mesh(
    experiment: Experiment, program: Program, fresh: TrainState
):
    tokens = np.random.default_rng(0).integers(61, size=(16, 16)).astype(np.int32)
    mesh = Mesh(replica=2, fsdp=2, tensor=2)
    sharded = make_program(resolve(replace(experiment, mesh=mesh)), jax.devices())
    params = jax.device_put(fresh.params, jax.tree.map(lambda s: s.sharding, sharded.state.params))
    seen = sharded.compile_probe()(params, sharded.layout.put({"tokens": tokens}, 16))
    firsts = {"tokens": tokens[::4]}
    expected = jax.jit(program.model.signals)(fresh.params, firsts, None)
    assert seen.keys() == expected.keys()
    for name, values in seen.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-5)


def test_signals_of_a_step_are_those_of_its_gradients(
    program: Program, compiled: Any, fresh: TrainState
):
    """All norms of a step come from the same sums."""
    state = jax.device_put(fresh, jax.tree.map(lambda s: s.sharding, program.state))
    tokens = np.random.default_rng(0).integers(61, size=(16, 16)).astype(np.int32)
    _, metrics = compiled(state, program.layout.put({"tokens": tokens}, 16))
    signals = metrics["signals"]
    for name in ("grad_norm", "param_norm"):
        parts = [
            np.ravel(x)
            for key, x in signals.items()
            if key.startswith(f"{name}/") and not key.startswith(f"{name}/blocks/")
        ]
        assert float(metrics[name]) == pytest.approx(np.linalg.norm(np.concatenate(parts)))
    moved = signals["update_ratio/blocks"] * signals["param_norm/blocks"]
    assert np.linalg.norm(moved) < float(metrics["update_norm"])


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
    monkeypatch.setattr(program_module, "memory_limit", lambda device: needed)
    assert require_fit(program, compiled).total == needed
    monkeypatch.setattr(program_module, "memory_limit", lambda device: None)
    assert require_fit(program, compiled).total == needed
    monkeypatch.setattr(program_module, "memory_limit", lambda device: needed - 1)
    message = r"does not fit: it takes 3\.0\d GiB per device .* of the 3\.0\d GiB there are"
    with pytest.raises(InputError, match=message):
        require_fit(program, compiled)


def test_a_step_takes_the_options_of_its_device(program: Program, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def options(device_kind: str) -> dict[str, bool]:
        asked.append(device_kind)
        return {"xla_no_such_option": True}

    monkeypatch.setattr(program_module, "compiler_options", options)
    with pytest.raises(InputError, match="xla_no_such_option"):
        program.compile()
    assert asked == ["cpu"]


def test_a_step_that_a_pass_of_the_compiler_fails_on_is_compiled_without_it(
    program: Program, monkeypatch: pytest.MonkeyPatch
):
    asked: list[dict[str, Any]] = []

    def fails_at_first(lowered: Any, compiler_options: dict[str, Any]) -> str:
        asked.append(compiler_options)
        if len(asked) % 2:
            raise jax.errors.JaxRuntimeError(
                "INTERNAL: RET_CHECK failure (while_loop_all_reduce_code_motion.cc:1125)"
            )
        return "compiled"

    monkeypatch.setattr(jax.stages.Lowered, "compile", fails_at_first)
    assert program.compile() == "compiled"
    first, second = asked
    name, failing = "xla_disable_hlo_passes", "while-loop-all-reduce-code-motion"
    assert (name in first, second) == (False, first | {name: failing})
    assert program.compile({name: "another"}) == "compiled"
    assert asked[3][name] == f"another,{failing}"
