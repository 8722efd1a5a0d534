import os
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxpretrain.config.command import EXIT_STALLED
from jaxpretrain.config.errors import InputError
from jaxpretrain.parallel.mesh import Mesh
from jaxpretrain.storage.jsonl import read_lines
from jaxpretrain.train import recheck
from jaxpretrain.train.experiment import Experiment, resolve
from jaxpretrain.train.loop import Unequal
from jaxpretrain.train.program import make_program
from jaxpretrain.train.recheck import Recheck, describe_unequal, make_recheck
from jaxpretrain.train.run import train_experiment
from jaxpretrain.train.stages import make_stages


def flipped(x: jax.Array, device: jax.Device) -> jax.Array:
    """An array whose part on one device has one bit flipped."""
    parts = []
    for shard in x.addressable_shards:
        part = np.array(shard.data)
        if shard.device == device:
            part.view(np.uint32).flat[0] ^= 1
        parts.append(jax.device_put(part, shard.device))
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, parts)


@pytest.mark.parametrize("mesh", [Mesh(), Mesh(replica=2, fsdp=2, tensor=2)])
def test_a_bit_that_flips_on_a_device_names_it(experiment: Experiment, mesh: Mesh):
    program = make_program(resolve(replace(experiment, mesh=mesh)), jax.devices())
    compiled, state = make_recheck(program), program.create_state()
    tokens = np.random.default_rng(0).integers(60, size=(16, 16), dtype=np.int32)
    batch = program.layout.put({"tokens": tokens}, 16)
    assert compiled.unequal(state, batch) == []
    wrong = flipped(batch["tokens"], jax.devices()[5])
    (found,) = compiled.compare(
        compiled.checksums(state, batch), compiled.checksums(state, {"tokens": wrong})
    )
    assert found.devices == ((5,) if mesh.tensor == 1 else (4, 5))
    assert found.processes == (0,) and "gradient/embed/embedding" in found.names


def test_where_the_weights_do_not_fit_whole_a_copy_of_the_model_is_named(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
):
    mesh = Mesh(replica=2, fsdp=4)
    program = make_program(resolve(replace(experiment, mesh=mesh)), jax.devices())
    limits = iter([1, 1 << 40])
    monkeypatch.setattr(recheck, "memory_limit", lambda device: next(limits))
    compiled = make_recheck(program)
    assert [[d.id for d in group] for group in compiled.groups] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    state = program.create_state()
    batch = program.layout.put({"tokens": np.ones((16, 16), np.int32)}, 16)
    wrong = flipped(batch["tokens"], jax.devices()[6])
    (found,) = compiled.compare(
        compiled.checksums(state, batch), compiled.checksums(state, {"tokens": wrong})
    )
    assert found.devices == (4, 5, 6, 7)
    monkeypatch.setattr(recheck, "memory_limit", lambda device: 1)
    with pytest.raises(InputError, match="train.recheck_every: a second gradient takes 0.00 of"):
        make_recheck(program)


def test_where_gradients_differ_is_said_in_a_line():
    assert describe_unequal([]) is None
    found = recheck.Unequal((2, 3), (0,), ("a", "b", "c", "d"))
    line = describe_unequal([found]) or ""
    assert line.startswith(f"on devices 2-3 of process 0 ({os.uname().nodename}), in a, b and 2 m")


@pytest.fixture
def checked(experiment: Experiment) -> Experiment:
    return replace(experiment, train=replace(experiment.train, recheck_every="2 steps"))


def test_it_is_compiled_with_the_step_and_only_where_it_is_asked_for(
    experiment: Experiment, checked: Experiment
):
    for config, is_there in ((experiment, False), (checked, True)):
        stage = make_stages(resolve(config), jax.devices()[:1]).at(1)
        assert stage.train_step is not None
        assert ("recheck" in vars(stage)) == is_there


def test_a_run_that_checks_its_gradients_trains_as_without(
    experiment: Experiment, checked: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen, unequal = [], Recheck.unequal

    def watched(self: Recheck, state, batch):
        seen.append(int(state.step) + 1)
        return unequal(self, state, batch)

    monkeypatch.setattr(Recheck, "unequal", watched)
    losses = []
    for number, config in enumerate((experiment, checked)):
        workdir = tmp_path / str(number)
        assert train_experiment(resolve(config), workdir)
        lines = read_lines(workdir / "metrics.jsonl")
        losses.append([x["train/loss"] for x in lines if "train/loss" in x])
    assert losses[0] == losses[1]
    assert seen == [2, 4]


def test_a_gradient_that_differs_ends_the_run_before_the_step_is_made(
    checked: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    checksums, count = Recheck.checksums, iter(range(100))

    def wrong(self: Recheck, state, batch) -> dict[str, np.ndarray]:
        if next(count) == 3:  # the second gradient of step 4
            batch = {"tokens": flipped(batch["tokens"], jax.devices()[6])}
        return checksums(self, state, batch)

    monkeypatch.setattr(Recheck, "checksums", wrong)
    with pytest.raises(Unequal, match=r"step 4: .* differs on device 6 of process 0 \(") as caught:
        train_experiment(resolve(checked), tmp_path / "run")
    assert caught.value.exit_code == EXIT_STALLED
    steps = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert steps == [2]
    assert train_experiment(resolve(checked), tmp_path / "run")  # the next start goes on
