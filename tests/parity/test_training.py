from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxpretrain.checkpoints.names import from_named, to_named
from jaxpretrain.interop.olmo import TABLE
from jaxpretrain.train.experiment import resolve
from jaxpretrain.train.olmo_yaml import read_olmo_yaml
from jaxpretrain.train.program import make_program
from scripts.make_golden_olmo import RUNS, Arrays, write_run
from tests.parity.models import Names, Reference


@dataclass(frozen=True)
class Trained:
    names: Names
    params: dict[str, np.ndarray]
    """After the last step, by our names."""
    records: dict[str, np.ndarray]
    """Metrics of the steps."""
    num_masked: int
    """Sequences that were left out of the loss."""


def train(name: str, folder: Path, microbatch_size: int | None = None) -> Trained:
    """The run of the YAML that OLMo's trainer is given, from the weights that it begins with."""
    experiment = resolve(read_olmo_yaml(write_run(name, folder)).experiment)
    model: Any = replace(experiment.model, remat="none")
    portions = replace(experiment.train, microbatch_size=microbatch_size)
    experiment = replace(experiment, model=model, train=portions)
    program = make_program(experiment, jax.devices()[:1])
    data = experiment.data.open(seed=experiment.seed, limits=program.model.input_limits())
    names = Names.of(TABLE, model)
    start = names.to_ours(names.draw(RUNS[name].std))
    state = program.create_state()
    named = {key: jax.device_put(array, state.step.sharding) for key, array in start.items()}
    state = replace(state, params=from_named(state.params, named))
    train_step, batch_size = program.compile(), experiment.train.batch_size
    records, num_masked = [], 0
    for step in range(int(experiment.train.duration)):
        batch = data.batch(np.arange(step * batch_size, (step + 1) * batch_size))
        num_masked += sum(~mask.any() for mask in batch.get("mask", ()))
        state, metrics = train_step(state, batch)
        metrics["z_loss"] = model.z_loss * metrics["z"]
        records.append(jax.device_get(metrics))
    params = {key: np.asarray(array) for key, array in to_named(state.params).items()}
    merged = {key: np.array([record[key] for record in records]) for key in records[0]}
    return Trained(names, params, merged, num_masked)


def assert_records_agree(ours: Trained, theirs: Arrays, tolerance: float) -> None:
    np.testing.assert_allclose(ours.records["learning_rate"], theirs["learning_rate"], rtol=1e-6)
    for key in ("loss", "z_loss", "grad_norm"):
        relative = 10 * tolerance if key == "grad_norm" else 0
        np.testing.assert_allclose(
            ours.records[key], theirs[key], rtol=relative, atol=tolerance, err_msg=key
        )


@pytest.mark.parametrize("microbatch_size", [4, 1])
@pytest.mark.parametrize("name", ["olmo_1", "olmo_2"])
def test_ten_steps_are_those_of_olmos_trainer(
    name: str, microbatch_size: int, reference: Reference, tmp_path: Path
):
    theirs = reference("training", name)
    ours = train(name, tmp_path, microbatch_size)
    assert len(theirs["loss"]) == 10
    assert theirs["grad_norm"].max() > 1  # some are clipped
    assert (ours.num_masked > 0) == (name == "olmo_2")
    assert_records_agree(ours, theirs, 1e-4)
    updated = {key[11:]: a for key, a in theirs.items() if key.startswith("parameters/")}
    start = ours.names.to_ours(ours.names.draw(RUNS[name].std))
    for key, expected in ours.names.to_ours(updated).items():
        assert np.abs(expected - start[key]).max() > 0.01
        np.testing.assert_allclose(ours.params[key], expected, rtol=0, atol=1e-4, err_msg=key)


@pytest.mark.slow
def test_the_curve_of_twenty_million_parameters_is_theirs(reference: Reference, tmp_path: Path):
    """Twenty steps over the border of an epoch, in OLMo's order."""
    theirs = reference("training", "curve")
    ours = train("curve", tmp_path)
    assert 19.5e6 < sum(array.size for array in ours.params.values()) < 20.5e6
    assert len(theirs["loss"]) == 20 and ours.num_masked > 0
    assert_records_agree(ours, theirs, 1e-3)
