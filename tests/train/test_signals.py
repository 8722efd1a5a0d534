from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxpretrain.parallel.mesh import Mesh
from jaxpretrain.storage.jsonl import read_lines
from jaxpretrain.train.experiment import Experiment, resolve
from jaxpretrain.train.program import Program, make_program
from jaxpretrain.train.run import train_experiment
from jaxpretrain.train.signals import compile_probe
from jaxpretrain.train.state import TrainState
from jaxpretrain.train.trained import load_trained


def test_looking_changes_nothing(experiment: Experiment, tmp_path: Path):
    """Bit for bit: the step is the same program, and the probe leaves the parameters alone."""
    params = []
    for every in (0, 1):
        monitor = replace(experiment.monitor, signals_every=every)
        workdir = tmp_path / str(every)
        assert train_experiment(replace(experiment, monitor=monitor), workdir)
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
    seen = compile_probe(sharded)(params, sharded.layout.put({"tokens": tokens}, 16))
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
