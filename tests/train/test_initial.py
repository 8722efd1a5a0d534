from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxpretrain.checkpoints.names import to_named
from jaxpretrain.config.errors import InputError
from jaxpretrain.models.layers import RMSNorm
from jaxpretrain.storage.jsonl import read_lines
from jaxpretrain.train.experiment import Ema, Experiment
from jaxpretrain.train.initial import initial_state, require_initial_state
from jaxpretrain.train.program import make_program
from jaxpretrain.train.resolved import resolve
from jaxpretrain.train.run import train_experiment
from jaxpretrain.train.trained import load_trained


@pytest.fixture(scope="module")
def finished(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of five steps, saved at 2, 4 and 5."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    assert train_experiment(resolve(experiment), workdir)
    return workdir


def _begin(experiment: Experiment, **fields: Any) -> tuple[int, dict[str, np.ndarray]]:
    program = make_program(resolve(replace(experiment, **fields)), jax.devices())
    first, state = initial_state(program)
    assert jax.tree.map(lambda s: s.sharding, program.state) == jax.tree.map(
        lambda x: x.sharding, state
    )
    return first, {name: np.asarray(x) for name, x in to_named(state).items()}


def test_weights_alone_begin_a_new_run(experiment: Experiment, finished: Path):
    """Everything else is as fresh, with another seed's key for what is drawn."""
    first, found = _begin(experiment, init_from=str(finished), seed=7)
    fresh = _begin(experiment, seed=7)[1]
    params = {f"params/{k}": x for k, x in to_named(load_trained(finished).params).items()}
    assert first == 0 and found.keys() == fresh.keys()
    for name, x in found.items():
        np.testing.assert_array_equal(x, params.get(name, fresh[name]), err_msg=name)


@pytest.mark.parametrize("init_with", ["weights", "optimizer", "everything"])
def test_what_cannot_be_begun_with_is_refused_without_compiling(
    experiment: Experiment, finished: Path, tmp_path: Path, init_with: str
):
    def program(**fields: Any) -> Any:
        return make_program(
            resolve(replace(experiment, init_with=init_with, **fields)), jax.devices()
        )

    require_initial_state(program(init_from=str(finished)))
    with pytest.raises(InputError, match=r"--config.init_from=.*no such folder"):
        require_initial_state(program(init_from=str(tmp_path / "none")))
    wider = replace(experiment.model, d_ff=2 * experiment.model.d_ff)
    with pytest.raises(InputError, match="is another model's"):
        require_initial_state(program(init_from=str(finished), model=wider))


def test_moments_come_along_when_asked_for_and_the_schedule_begins(
    experiment: Experiment, finished: Path
):
    first, found = _begin(experiment, init_from=str(finished), init_with="optimizer")
    assert first == 0 and found["step"] == 0 and found["optimizer/learning_rate/count"] == 0
    assert found["optimizer/adam/count"] == 5
    assert all(x.any() for name, x in found.items() if name.startswith("optimizer/adam/nu"))


def test_the_average_begins_with_the_weights(experiment: Experiment, finished: Path):
    train = replace(experiment.train, ema=Ema(0.9))
    found = _begin(experiment, init_from=str(finished), train=train)[1]
    averages = {n.removeprefix("ema/"): x for n, x in found.items() if n.startswith("ema/")}
    assert averages
    for name, x in averages.items():
        np.testing.assert_array_equal(x, found[f"params/{name}"])


def test_with_everything_a_run_goes_on_in_another_folder(
    experiment: Experiment, finished: Path, tmp_path: Path
):
    """Bit for bit: the step, the schedule and the data too."""
    middle = str(finished / "checkpoints" / "4")
    went_on = replace(experiment, init_from=middle, init_with="everything")
    assert train_experiment(resolve(went_on), tmp_path / "run")
    lines, expected = (
        {x["step"]: x["train/loss"] for x in read_lines(d / "metrics.jsonl") if "train/loss" in x}
        for d in (tmp_path / "run", finished)
    )
    assert lines == {5: expected[5]}
    first, second = (load_trained(folder).params for folder in (finished, tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_another_models_checkpoint_is_refused(experiment: Experiment, finished: Path):
    def begin(**model: Any) -> None:
        _begin(experiment, model=replace(experiment.model, **model), init_from=str(finished))

    with pytest.raises(InputError, match=r"--config\.init_from=.* another model's: it has .*head"):
        begin(tied_head=True)
    with pytest.raises(InputError, match="is another model's"):
        begin(d_ff=32)
    with pytest.raises(InputError, match="has no params/blocks/0/attention_norm/scale"):
        begin(qk_norm=True, norm=RMSNorm())
    with pytest.raises(InputError, match=r"--config\.init_from=nowhere: no such folder"):
        _begin(experiment, init_from="nowhere")
