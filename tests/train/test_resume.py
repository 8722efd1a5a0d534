import json
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxpretrain.checkpoints.names import to_named
from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.config.command import split_overrides
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.config.serialize import to_dict
from jaxpretrain.data.text.mixture import Mixture, MixtureSource, MixtureStage
from jaxpretrain.data.text.text import TextData
from jaxpretrain.models.layers import RMSNorm
from jaxpretrain.optim.schedules import Constant, LinearTail, Triangular, WarmupStableDecay
from jaxpretrain.storage.jsonl import read_lines
from jaxpretrain.train.experiment import Ema, Experiment, Stage, resolve
from jaxpretrain.train.program import make_program
from jaxpretrain.train.resume import (
    ResumePoint,
    describe_changes,
    initial_state,
    newest_point,
    require_initial_state,
    require_same_samples,
)
from jaxpretrain.train.run import train_experiment
from jaxpretrain.train.trained import load_trained


def _with(experiment: Experiment, *stages: Stage, **train: Any) -> Experiment:
    return replace(experiment, train=replace(experiment.train, stages=stages, **train))


def _point(experiment: Experiment, step: int, samples: int | None = None) -> ResumePoint:
    """The checkpoint of a step of an experiment."""
    experiment = resolve(experiment)
    seen = int(resolve(experiment).timeline.pace.examples(step)) if samples is None else samples
    return ResumePoint("--workdir=run", Path("run"), step, seen, to_dict(experiment), "fingerprint")


def _problem(point: ResumePoint, experiment: Experiment, fingerprint: str = "fingerprint") -> str:
    """The line with which it is refused to go on."""
    with pytest.raises(InputError) as error:
        require_same_samples(point, resolve(experiment), fingerprint)
    assert "\n" not in str(error.value)
    return str(error.value)


def _amended(problem: str, experiment: Experiment) -> Experiment:
    """The experiment with the flags that the line names."""
    flags = re.findall(r"--config\.\S+=(?:'[^']*'|[^\s',]*)", problem.partition(" add ")[2])
    _, overrides = split_overrides(shlex.split(" ".join(flags)))
    return apply_overrides(experiment, overrides)


def test_the_flags_that_go_on_with_another_batch_are_printed(experiment: Experiment):
    before, now = _with(experiment, batch_size=4), _with(experiment, batch_size=8, duration=20)
    assert _problem(_point(before, 10), now) == (
        "--workdir=run: step 10 has seen 40 samples, and with this config it would have seen 80; "
        "to go on at sample 40 with the new values, add --config.train.batch_size=8 "
        "--config.train.stages.0.duration='10 steps' --config.train.stages.0.batch_size=4"
    )


S = Stage


@pytest.mark.parametrize(
    ("before", "now", "meant"),
    [  # (batch size, stages) before and now at step 10, and the stages that mean it
        ((4, []), (8, []), [S(10, 4)]),
        ((8, []), (2, []), [S(10, 8)]),
        ((4, [S(3, 2)]), (8, [S(3, 2)]), [S(3, 2), S(7, 4)]),
        ((4, [S(3, 2)]), (4, []), [S(3, 2)]),
        ((4, []), (4, [S(3, 2)]), []),
        ((4, []), (4, [S(14, 2)]), [S(10, 4), S(4, 2)]),
        ((4, [S(20, 2)]), (8, [S(20, 2)]), None),
        ((4, [S(20, 2)]), (4, []), [S(10, 2)]),
        ((4, [S(20, 2)]), (4, [S(20, 6)]), [S(10, 2), S(10, 6)]),
        ((4, [S(4, 2), S(20, 6)]), (16, [S(6, 8), S(9, 8)]), [S(4, 2), S(6, 6), S(5, 8)]),
        ((4, [S(4, 2, 8)]), (8, [S(4, 2, 8), S(12, 4)]), None),
        ((4, [S(4, 2, 8)]), (8, []), [S(4, 2, 8), S(6, 4)]),
        ((4, [S(4, None, 8)]), (8, [S(12, None, 4)]), [S(4, 4, 8), S(6, 4), S(2, 8, 4)]),
        ((4, [S(4, None, 8)]), (4, [S(12, None, 4)]), None),
    ],
)
def test_what_is_printed_keeps_the_past_and_the_new_future(
    experiment: Experiment, before: Any, now: Any, meant: list[Stage] | None
):
    point = _point(_with(experiment, *before[1], batch_size=before[0], duration=40), 10)
    wanted = _with(experiment, *now[1], batch_size=now[0], duration=40)
    if meant is None:
        require_same_samples(point, resolve(wanted), "fingerprint")
        return
    amended = resolve(_amended(_problem(point, wanted), wanted))
    assert list(amended.train.stages) == meant
    require_same_samples(point, amended, "fingerprint")
    pace = resolve(wanted).timeline.pace
    future = pace.examples(40) - pace.examples(10)
    assert amended.timeline.pace.examples(40) - point.samples == future


def test_a_run_that_has_seen_nothing_may_become_any(experiment: Experiment):
    other = replace(_with(experiment, batch_size=8), seed=1)
    require_same_samples(_point(experiment, 0), resolve(other), "another")


def test_batches_that_nothing_tells_are_named_by_their_mean_or_not_at_all(experiment: Experiment):
    now = _with(experiment, batch_size=8, duration=20)
    amended = _amended(_problem(_point(now, 10, samples=30), now), now)
    assert resolve(amended).train.stages == (Stage(10, 3),)
    assert "nothing tells any more; begin a new run" in _problem(_point(now, 10, samples=31), now)


def test_a_finished_run_is_to_become_longer_too(experiment: Experiment):
    before, now = _with(experiment, batch_size=4), _with(experiment, batch_size=8)
    assert _problem(_point(before, 5), now).endswith("and train.duration beyond step 5")


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"data.seq_len": 8},
        {"data.order": "hashed_order"},
        {"data.order.chunk": 2},
        {"data.order.epoch_multiple": 4},
    ],
)
def test_where_samples_get_other_numbers_a_new_run_is_advised(
    experiment: Experiment, changes: Mapping[str, Any]
):
    [(path, value)] = changes.items()
    if path == "data.order.chunk":
        experiment = apply_overrides(experiment, [("data.order", "olmo_core_order")])
    now = apply_overrides(experiment, [(path, str(value))])
    problem = _problem(_point(experiment, 3), now, "fingerprint" if "seed" in changes else "other")
    assert f"{path} is {value}, was " in problem
    assert "in another --workdir, with --config.init_from=run --config.init_with=opt" in problem


def test_other_files_that_are_allowed_go_on_at_the_same_sample(experiment: Experiment):
    assert isinstance(experiment.data, TextData)
    now = resolve(replace(experiment, data=replace(experiment.data, root="elsewhere")))
    require_same_samples(_point(experiment, 3), now, "other")
    assert describe_changes(_point(experiment, 3), now, "fingerprint") == []
    assert describe_changes(_point(experiment, 3), now, "other") == [
        "the data is not as it was before: step 4 begins with sample 48 of what it is now"
    ]


def _mixed(experiment: Experiment, *stages: MixtureStage, **weights: float) -> Experiment:
    sources = {name: MixtureSource(weight=weight) for name, weight in weights.items()}
    mixture = Mixture(sources=sources, stages=stages, seq_len=16, window=10)
    return replace(_with(experiment, duration=40), data=mixture)


@pytest.mark.parametrize(
    ("before", "now", "meant"),
    [  # weights from a sample on; the checkpoint is at 48
        ({0: [0.5, 0.5]}, {0: [0.9, 0.1]}, {0: [0.5, 0.5], 48: [0.9, 0.1]}),
        (
            {0: [0.5, 0.5], 30: [0.3, 0.7], 70: [0.2, 0.8]},
            {0: [0.5, 0.5], 20: [0.4, 0.6], 90: [1, 0]},
            {0: [0.5, 0.5], 30: [0.3, 0.7], 48: [0.4, 0.6], 90: [1, 0]},
        ),
        ({0: [0.5, 0.5]}, {0: [0.5, 0.3, 0.2]}, {0: [0.5, 0.5, 0], 48: [0.5, 0.3, 0.2]}),
        ({0: [0.5, 0.5]}, {0: [0.5, 0.5], 48: [0.1, 0.9]}, None),
        ({0: [0.5, 0.5], 50: [0.1, 0.9]}, {0: [1, 1]}, None),
    ],
)
def test_other_weights_of_a_mixture_begin_where_the_checkpoint_ends(
    experiment: Experiment, before: Any, now: Any, meant: Any
):
    def build(weights: dict[int, list[float]]) -> Experiment:
        (_, own), *later = [(a, dict(zip("abc", w, strict=False))) for a, w in weights.items()]
        return _mixed(experiment, *(MixtureStage(a, w) for a, w in later), **own)

    point, wanted = _point(build(before), 3), build(now)
    if meant is None:
        require_same_samples(point, resolve(wanted), "other")
        return
    problem = _problem(point, wanted, "other")
    assert "the mixture of the first 48 samples was another; to go on at sample 48" in problem
    amended = resolve(_amended(problem, wanted))
    assert amended.data == resolve(build(meant)).data
    require_same_samples(point, amended, "other")


def test_other_weights_begin_behind_the_samples_that_were_left_out(experiment: Experiment):
    """The mixture counts them: 48 samples of the run are 58 of the mixture."""
    skip = ("5-9", "50-54", "58-70")
    before, now = (
        replace(mixed, data=replace(mixed.data, skip=skip))
        for mixed in (_mixed(experiment, a=0.5, b=0.5), _mixed(experiment, a=0.9, b=0.1))
    )
    problem = _problem(_point(before, 3), now, "other")
    assert "to go on at sample 48" in problem
    amended = resolve(_amended(problem, now)).data
    assert isinstance(amended, Mixture)
    assert amended.proportions(58) == resolve(before).data.proportions(58)
    assert [stage.at for stage in amended.stages] == [58]


def test_a_source_that_was_read_is_to_stay(experiment: Experiment):
    point = _point(_mixed(experiment, a=1, b=1), 3)
    problem = _problem(point, _mixed(experiment, a=1, c=1), "other")
    assert "data.sources has no b, of which the first 48 samples are; keep it" in problem


def _rates(experiment: Experiment, schedule: Any, duration: int) -> Experiment:
    optim = replace(experiment.optim, schedule=schedule)
    return replace(_with(experiment, duration=duration), optim=optim)


def test_a_rate_that_goes_up_again_is_told_with_what_keeps_it_down(experiment: Experiment):
    schedule = Triangular(start=1e-4, peak=1e-2, end=1e-4, warmup=5)
    before, now = (_rates(experiment, schedule, duration) for duration in (20, 40))
    [line] = describe_changes(_point(before, 20), resolve(now), "fingerprint")
    assert line.startswith(
        "the learning rate goes from 0.0001 at step 20 to 0.00547 at the next, because the run now "
        "ends at step 40 instead of 20. To keep the old descent, add --allow_config_change "
        "--config.optim.schedule.horizon='20 steps'. To anneal from there to 0 at step 40, add "
    )
    keep, anneal = (part.partition(" add ")[0] for part in line.split("To ")[1:])
    assert (keep, anneal) == ("keep the old descent,", "anneal from there to 0 at step 40,")
    kept, annealed = (
        resolve(_amended(f"{part}", now)) for part in (f"To {x}" for x in line.split("To ")[1:])
    )
    assert kept.optim.schedule == replace(schedule, horizon=20)
    assert np.asarray(kept.optim.learning_rate(40, 8)(40)) == pytest.approx(1e-4)
    assert annealed.optim.schedule == LinearTail(replace(schedule, horizon=20), length=20)
    assert describe_changes(_point(before, 20), kept, "fingerprint") == []
    rates = np.asarray(annealed.optim.learning_rate(40, 8)(np.array([20, 30, 40])))
    np.testing.assert_allclose(rates, [1e-4, 5e-5, 0], rtol=1e-5, atol=1e-9)


def test_a_rate_that_goes_on_is_not_told(experiment: Experiment):
    schedule = Triangular(start=1e-4, peak=1e-2, end=1e-4, warmup=5)
    before = _rates(experiment, schedule, 20)
    assert describe_changes(_point(before, 10), resolve(before), "fingerprint") == []
    assert describe_changes(_point(before, 20), resolve(before), "fingerprint") == []
    stable = [_rates(experiment, WarmupStableDecay(warmup=2, decay=5), n) for n in (20, 40)]
    assert describe_changes(_point(stable[0], 15), resolve(stable[1]), "fingerprint") == []
    [line] = describe_changes(_point(stable[0], 18), resolve(stable[1]), "fingerprint")
    assert "goes from 0.00012 at step 18 to 0.0003 at the next" in line
    assert "Its decay began at step 15: to go on as if it had not, move the later" in line


def test_another_rate_that_is_asked_for_is_told_without_advice(experiment: Experiment):
    before, now = (_rates(experiment, Constant(peak=peak), 20) for peak in (1e-3, 2e-3))
    assert describe_changes(_point(before, 10), resolve(now), "fingerprint") == [
        "the learning rate goes from 0.001 at step 10 to 0.002 at the next"
    ]


@pytest.fixture(scope="module")
def constant(experiment: Experiment) -> Experiment:
    """Runs of it go on alike whatever their length."""
    optim = replace(experiment.optim, schedule=Constant(peak=1e-2))
    evals = replace(experiment.eval, every="0 steps")
    return replace(experiment, optim=optim, eval=evals)


@pytest.fixture(scope="module")
def finished(constant: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps with a batch of 16."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    assert train_experiment(resolve(_with(constant, duration=3)), workdir)
    return workdir


def _lines(workdir: Path) -> list[tuple[Any, ...]]:
    names = ("step", "train/loss", "train/grad_norm", "train/tokens", "epochs")
    lines = read_lines(workdir / "metrics.jsonl")
    return [tuple(line.get(name) for name in names) for line in lines if "train/loss" in line]


@pytest.mark.parametrize("batch_size", [8, 32])
@pytest.mark.parametrize("way", ["resume", "init_from"])
def test_with_another_batch_a_run_goes_on_as_if_its_stages_had_been_known(
    constant: Experiment, finished: Path, tmp_path: Path, batch_size: int, way: str
):
    """Bit for bit, and each sample once."""
    now = _with(constant, batch_size=batch_size, duration=5)
    workdir = tmp_path / "run"
    if way == "resume":
        shutil.copytree(finished, workdir)
    else:
        now = replace(now, init_from=str(finished), init_with="everything")
    with pytest.raises(InputError, match="step 3 has seen 48 samples") as error:
        train_experiment(resolve(now), workdir, allow_config_change=True)
    assert workdir.exists() == (way == "resume")
    amended = _amended(str(error.value), now)
    assert train_experiment(resolve(amended), workdir, allow_config_change=way == "resume")
    whole = replace(amended, init_from=None, init_with="weights")
    assert train_experiment(resolve(whole), tmp_path / "whole")
    expected = _lines(tmp_path / "whole")
    assert _lines(workdir) == (expected if way == "resume" else expected[3:])
    assert [line[3] for line in expected[3:]] == [768 + 16 * batch_size * n for n in (1, 2)]
    document = Checkpoints(workdir / "checkpoints", read_only=True).document(5)
    assert document["data_position"] == 48 + 2 * batch_size


def test_checkpoints_that_count_steps_still_open(
    constant: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """Their folder's own config says how many samples they have seen."""
    staged = _with(constant, Stage(2, 8), duration=3)
    workdir = tmp_path / "run"
    train_experiment(resolve(staged), workdir)
    path = workdir / "checkpoints" / "3" / "meta" / "metadata"
    document = json.loads(path.read_text())
    assert document["data_position"] == 2 * 8 + 16
    path.write_text(json.dumps(document | {"data_position": 3}))
    point = newest_point(workdir)
    assert point is not None and (point.step, point.samples) == (3, 32)
    with pytest.raises(InputError, match="step 3 has seen 32 samples"):
        train_experiment(resolve(_with(constant, duration=4)), workdir, allow_config_change=True)
    assert train_experiment(resolve(_with(constant, Stage(2, 8), duration=4)), workdir)
    assert Checkpoints(workdir / "checkpoints", read_only=True).document(4)["data_position"] == 48


def test_everything_from_elsewhere_says_where_it_begins(
    constant: Experiment, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    now = replace(_with(constant, duration=4), init_from=str(finished), init_with="everything")
    assert train_experiment(resolve(now), tmp_path / "run")
    error = capsys.readouterr().err
    assert "going on after step 3" in error and "starting at step 0" not in error
    assert f"everything from {finished}, at step 3 and sample 48 of the data" in error
    steps = [line["step"] for line in read_lines(tmp_path / "run" / "metrics.jsonl")]
    assert min(steps) == 3
    with pytest.raises(InputError, match=r"init_from=.*: seed is 1, was 6198.*init_with=optimizer"):
        train_experiment(resolve(replace(now, seed=1)), tmp_path / "other")
    np.testing.assert_equal((tmp_path / "other").exists(), False)


@pytest.fixture(scope="module")
def five_steps(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
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


def test_weights_alone_begin_a_new_run(experiment: Experiment, five_steps: Path):
    """Everything else is as fresh, with another seed's key for what is drawn."""
    first, found = _begin(experiment, init_from=str(five_steps), seed=7)
    fresh = _begin(experiment, seed=7)[1]
    params = {f"params/{k}": x for k, x in to_named(load_trained(five_steps).params).items()}
    assert first == 0 and found.keys() == fresh.keys()
    for name, x in found.items():
        np.testing.assert_array_equal(x, params.get(name, fresh[name]), err_msg=name)


@pytest.mark.parametrize("init_with", ["weights", "optimizer", "everything"])
def test_what_cannot_be_begun_with_is_refused_without_compiling(
    experiment: Experiment, five_steps: Path, tmp_path: Path, init_with: str
):
    def program(**fields: Any) -> Any:
        return make_program(
            resolve(replace(experiment, init_with=init_with, **fields)), jax.devices()
        )

    require_initial_state(program(init_from=str(five_steps)))
    with pytest.raises(InputError, match=r"--config.init_from=.*no such folder"):
        require_initial_state(program(init_from=str(tmp_path / "none")))
    wider = replace(experiment.model, d_ff=2 * experiment.model.d_ff)
    with pytest.raises(InputError, match="is another model's"):
        require_initial_state(program(init_from=str(five_steps), model=wider))
    at_base = replace(experiment.model, scaling="mup", base_width=32)
    require_initial_state(program(init_from=str(five_steps), model=at_base))
    scaled = replace(at_base, base_width=16)
    expected = (
        "its weights are of model.scaling=standard, and a model of model.scaling=mup, "
        "model.base_width=16 multiplies them by other factors"
    )
    with pytest.raises(InputError, match=expected):
        require_initial_state(program(init_from=str(five_steps), model=scaled))


def test_moments_come_along_when_asked_for_and_the_schedule_begins(
    experiment: Experiment, five_steps: Path
):
    first, found = _begin(experiment, init_from=str(five_steps), init_with="optimizer")
    assert first == 0 and found["step"] == 0 and found["optimizer/learning_rate/count"] == 0
    assert found["optimizer/adam/count"] == 5
    assert all(x.any() for name, x in found.items() if name.startswith("optimizer/adam/nu"))


def test_the_average_begins_with_the_weights(experiment: Experiment, five_steps: Path):
    train = replace(experiment.train, ema=Ema(0.9))
    found = _begin(experiment, init_from=str(five_steps), train=train)[1]
    averages = {n.removeprefix("ema/"): x for n, x in found.items() if n.startswith("ema/")}
    assert averages
    for name, x in averages.items():
        np.testing.assert_array_equal(x, found[f"params/{name}"])


def test_with_everything_a_run_goes_on_in_another_folder(
    experiment: Experiment, five_steps: Path, tmp_path: Path
):
    """Bit for bit: the step, the schedule and the data too."""
    middle = str(five_steps / "checkpoints" / "4")
    went_on = replace(experiment, init_from=middle, init_with="everything")
    assert train_experiment(resolve(went_on), tmp_path / "run")
    lines, expected = (
        {x["step"]: x["train/loss"] for x in read_lines(d / "metrics.jsonl") if "train/loss" in x}
        for d in (tmp_path / "run", five_steps)
    )
    assert lines == {5: expected[5]}
    first, second = (load_trained(folder).params for folder in (five_steps, tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_another_models_checkpoint_is_refused(experiment: Experiment, five_steps: Path):
    def begin(**model: Any) -> None:
        _begin(experiment, model=replace(experiment.model, **model), init_from=str(five_steps))

    with pytest.raises(InputError, match=r"--config\.init_from=.* another model's: it has .*head"):
        begin(tied_head=True)
    with pytest.raises(InputError, match="is another model's"):
        begin(d_ff=32)
    with pytest.raises(InputError, match="has no params/blocks/0/attention_norm/scale"):
        begin(qk_norm=True, norm=RMSNorm())
    with pytest.raises(InputError, match=r"--config\.init_from=nowhere: no such folder"):
        _begin(experiment, init_from="nowhere")
