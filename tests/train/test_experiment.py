import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

from jaxpretrain.config import schema
from jaxpretrain.config.durations import Pace
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.files import load_config
from jaxpretrain.config.overrides import apply_overrides, validate
from jaxpretrain.config.ranges import Between
from jaxpretrain.config.renames import upgraded
from jaxpretrain.config.schema import Mark, marks_at
from jaxpretrain.config.serialize import diff, from_dict, to_dict
from jaxpretrain.data.text.mixture import Mixture, MixtureSource, MixtureStage
from jaxpretrain.diagnosis.rules import NAMES
from jaxpretrain.train.experiment import (
    Ema,
    Experiment,
    Monitor,
    Resolved,
    Skip,
    Stage,
    Timeline,
    Train,
    identity_changes,
    num_microbatches,
    resolve,
    skip_steps,
)


@dataclass(frozen=True)
class Config:
    """The group of an experiment that this test needs."""

    monitor: Monitor = field(default_factory=Monitor)


def test_which_attention_counts_is_no_choice_any_more():
    """Saved configs lose the field; on the command line, the error says where both figures are."""
    old = {"monitor": {"every": "5 steps", "mfu_attention": "full"}}
    assert from_dict(Config, upgraded(old)) == Config(Monitor(every="5 steps"))
    with pytest.raises(InputError, match=r"monitor.mfu_attention .* perf/mfu_full_attention"):
        apply_overrides(Config(), [("monitor.mfu_attention", "full")])


def test_what_ends_a_run_is_named_as_findings_are():
    chosen = apply_overrides(Monitor(), [("stop_on", "plateau,divergence")])
    assert chosen.stop_on == ("plateau", "divergence")
    assert set(chosen.stop_on) < set(NAMES)
    assert apply_overrides(Monitor(), [("stop_on", ",".join(NAMES))]).stop_on == NAMES
    with pytest.raises(InputError, match="Did you mean 'plateau'"):
        apply_overrides(Monitor(), [("stop_on", "divergence,plateu")])


def _changed(experiment: Experiment, *overrides: tuple[str, str]) -> Experiment:
    return apply_overrides(experiment, overrides)


def test_where_and_how_data_is_named_and_counted_makes_no_other_run(experiment: Experiment):
    changed = _changed(experiment, ("data.num_examples", "40"))
    changes = diff(to_dict(resolve(experiment)), to_dict(resolve(changed)))
    identity, others = identity_changes(changes)
    assert not identity and len(others) == 1


@pytest.mark.parametrize(
    ("batch_size", "microbatch_size", "num_data", "expected"),
    [(16, None, 1, 1), (16, None, 8, 1), (16, 2, 1, 8), (16, 2, 8, 1), (48, 2, 4, 6), (5, 5, 1, 1)],
)
def test_each_device_works_through_its_share(batch_size, microbatch_size, num_data, expected):
    train = Train(batch_size=batch_size, microbatch_size=microbatch_size)
    assert num_microbatches(train, (1, num_data, 1)) == expected


@pytest.mark.parametrize(
    ("batch_size", "microbatch_size", "num_data", "message"),
    [
        (
            12,
            None,
            8,
            "the nearest mesh that it divides over is replica=1, fsdp=6, tensor=1, of 6 de",
        ),
        (16, 3, 1, "train.microbatch_size=3 does not divide the 16 examples"),
        (16, 4, 8, "train.microbatch_size=4 does not divide the 2 examples"),
    ],
)
def test_a_batch_that_does_not_divide_is_one_line(batch_size, microbatch_size, num_data, message):
    with pytest.raises(InputError) as error:
        train = Train(batch_size=batch_size, microbatch_size=microbatch_size)
        num_microbatches(train, (1, num_data, 1))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("path", "value", "is_identity"),
    [
        ("seed", "1", True),
        ("model.d_model", "64", True),
        ("model.dtype", "bfloat16", True),
        ("model.attention", "xla", False),
        ("model.scan_layers", "false", False),
        ("model.remat", "full", False),
        ("model.norm.epsilon", "1e-3", True),
        ("model.init", "mitchell", True),
        ("model.rope", "yarn", True),
        ("data.seq_len", "8", True),
        ("data.order", "hashed_order", True),
        ("data.root", "/elsewhere", False),
        ("data.verify", "size", False),
        ("optim.schedule.peak", "1", True),
        ("optim.schedule", "constant", True),
        ("train.batch_size", "8", True),
        ("train.microbatch_size", "1", False),
        ("train.duration", "9 steps", False),
        ("mesh.tensor", "2", False),
        ("eval.every", "1 steps", False),
        ("checkpoint.every", "1 steps", False),
        ("monitor.every", "2 steps", False),
    ],
)
def test_identity_is_what_the_result_depends_on(experiment: Experiment, path, value, is_identity):
    before, after = resolve(experiment), resolve(_changed(experiment, (path, value)))
    identity, other = identity_changes(diff(to_dict(before), to_dict(after)))
    changed, kept = (identity, other) if is_identity else (other, identity)
    assert changed and not kept
    assert all(p == path or p.startswith(f"{path}.") for p, _, _ in changed)


IDENTITY = (
    *("seed", "model", "data", "optim", "train.batch_size", "train.stages"),
    *("init_from", "init_with"),
)
NO_EFFECT = (
    *("model.attention", "model.scan_layers", "model.remat"),
    *("data.root", "data.sources.*.root", "data.source.root", "data.source.data_dir"),
    *("data.raw.trust_dtype", "data.sources.*.raw.trust_dtype", "data.verify"),
    *("data.num_examples", "data.num_workers", "data.max_undecodable"),
)
ORDER = (
    *("data.seq_len", "data.order", "data.order.class", "data.order.chunk"),
    *("data.order.epoch_multiple", "data.order.global_indices"),
)


def _paths(hint: Any, prefix: str) -> Iterator[str]:
    """All paths that a value of a type can have, with the key `x` in dicts."""
    for member in schema.members(hint):
        inside: dict[str, Any] = {}
        if dataclasses.is_dataclass(member):
            inside = {"class": str, **schema.field_types(member)}
        elif get_origin(member) is tuple:
            inside = {str(i): arg for i, arg in enumerate(get_args(member)) if arg is not ...}
        elif get_origin(member) is dict:
            inside = {"x": get_args(member)[1]}
        for key, inner in inside.items():
            yield f"{prefix}{key}"
            yield from _paths(inner, f"{prefix}{key}.")


def test_the_marks_of_all_fields_are_these():
    """A change of such a path makes another run, or says only where and how fast."""
    paths = set(_paths(Experiment, ""))
    assert len(paths) > 300
    for path in paths:
        marks = marks_at(Experiment, path)
        is_free = any(fnmatch(path, pattern) for pattern in NO_EFFECT)
        is_identity = any(path == part or path.startswith(f"{part}.") for part in IDENTITY)
        assert (Mark.IDENTITY in marks) == is_identity, path
        if is_identity:
            assert (Mark.NO_EFFECT in marks) == is_free, path
            assert (Mark.SAMPLE_ORDER in marks) == (path in ORDER), path


def test_changes_are_split_without_loss():
    changes: list[tuple[str, Any, Any]] = [("seed", 1, 2), ("seedling", 1, 2), ("mesh.fsdp", 1, 2)]
    identity, other = identity_changes(changes)
    assert identity == [("seed", 1, 2)]  # by whole names: a seedling is no seed
    assert other == changes[1:]


def test_the_defaults_are_legal(experiment: Experiment):
    plain = Experiment(model=experiment.model, data=experiment.data, optim=experiment.optim)
    assert resolve(replace(plain, train=Train())).train.duration == 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ema": Ema(1.0)}, "--config.train.ema.decay=1.0: must be above 0 and below 1"),
        ({"ema": Ema(0.0)}, "--config.train.ema.decay=0.0: must be above 0 and below 1"),
        (
            {"on_bad_step": Skip(outliers=0.0)},
            "--config.train.on_bad_step.outliers=0.0: must be positive, or none",
        ),
        (
            {"on_bad_step": Skip(max_in_row=0)},
            "--config.train.on_bad_step.max_in_row=0: must be positive",
        ),
    ],
)
def test_what_guards_a_run_must_make_sense(experiment: Experiment, change, message):
    with pytest.raises(InputError) as error:
        resolve(replace(experiment, train=replace(experiment.train, **change)))
    assert str(error.value) == message


@dataclasses.dataclass(frozen=True)
class Saved:
    """The part of a saved config that holds the weights and their guards."""

    train: Train = Train()


@pytest.mark.parametrize(
    ("train", "evaluation", "expected"),
    [
        ({"on_bad_step": "stop", "skip_outliers": None, "max_skipped": 10}, {}, Train()),
        ({"on_bad_step": "skip"}, {}, Train(on_bad_step=Skip())),
        (
            {"on_bad_step": "stop", "skip_outliers": 6.0, "max_skipped": 3},
            {},
            Train(on_bad_step=Skip(not_finite=False, outliers=6.0, max_in_row=3)),
        ),
        (
            {"on_bad_step": "skip", "skip_outliers": 5.0, "max_skipped": 10},
            {},
            Train(on_bad_step=Skip(outliers=5.0)),
        ),
        ({"ema": None}, {"weights": "current"}, Train()),
        ({"ema": 0.99}, {"weights": "current"}, Train(ema=Ema(0.99))),
        ({"ema": 0.99}, {"weights": "average"}, Train(ema=Ema(0.99, evaluate=True))),
        ({"deterministic": False, "compiler_options": {}}, {}, Train()),
        (
            {"deterministic": True, "compiler_options": {"xla_a": "1"}},
            {},
            Train(compiler_options={"xla_gpu_deterministic_ops": True, "xla_a": "1"}),
        ),
    ],
)
def test_guards_and_averages_of_earlier_versions_are_read_as_todays(
    train: dict[str, Any], evaluation: dict[str, Any], expected: Train
):
    today = upgraded({"train": train, "eval": evaluation})
    assert "weights" not in today["eval"]
    assert from_dict(Saved, {"train": today["train"]}).train == expected
    assert upgraded(to_dict(Saved(expected))) == to_dict(Saved(expected))


@pytest.mark.parametrize(
    ("path", "now"),
    [
        ("train.skip_outliers", "train.on_bad_step=skip, then train.on_bad_step.outliers"),
        ("train.max_skipped", "train.on_bad_step=skip, then train.on_bad_step.max_in_row"),
        ("train.deterministic", "train.compiler_options.xla_gpu_deterministic_ops=true"),
        ("eval.weights", "train.ema=ema, then train.ema.evaluate=true"),
    ],
)
def test_a_path_of_earlier_versions_says_what_is_written_now(
    experiment: Experiment, path: str, now: str
):
    with pytest.raises(InputError) as error:
        _changed(experiment, (path, "1"))
    assert str(error.value) == f"--config.{path} is written in another way now: {now}"


def test_bad_steps_and_the_average_are_chosen_on_the_command_line(experiment: Experiment):
    flags = ("train.on_bad_step", "skip"), ("train.on_bad_step.outliers", "6"), ("train.ema", "ema")
    train = _changed(experiment, *flags).train
    assert (train.on_bad_step, train.ema) == (Skip(outliers=6.0), Ema())
    assert _changed(experiment, *flags, ("train.on_bad_step", "stop")).train.on_bad_step == "stop"
    with pytest.raises(InputError, match=r"--config\.train\.ema=0\.9: expected one of ema, none"):
        _changed(experiment, ("train.ema", "0.9"))


def _classes(hint: Any, found: set[type]) -> set[type]:
    """The dataclasses inside a type, at any depth, added to those that were found."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and hint not in found:
        found.add(hint)
        for inner in schema.field_types(hint).values():
            _classes(inner, found)
    for inner in get_args(hint):
        _classes(inner, found)
    return found


CLASSES = sorted(_classes(Experiment, set()), key=lambda cls: cls.__name__)


def _number_members(hint: Any) -> Iterator[tuple[Any, list[Between]]]:
    """(int or float, its ranges) of each number inside a type, those of tuples and dicts too."""
    for member, marks in schema.marked_members(hint):
        if member in (int, float):
            yield member, [mark for mark in marks if isinstance(mark, Between)]
        elif not dataclasses.is_dataclass(member):
            for inner in get_args(member):
                yield from _number_members(inner)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_number_field_declares_its_range(cls: type):
    for name, hint in schema.field_types(cls).items():
        for member, ranges in _number_members(hint):
            assert ranges, f"{cls.__name__}.{name} has a {member.__name__} without a range"


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_default_lies_in_its_range(cls: type):
    required = {"model", "data", "optim"} if cls is Experiment else set()
    if not required:
        validate(cls())


ODD = (-1, 0, math.nan, math.inf, -math.inf, 1e30)


def _is_declared(value: float, hint: Any) -> bool:
    """Whether the type of a field declares a value, by its own arithmetic."""
    for member, marks in schema.marked_members(hint):
        if member not in (int, float):
            if any(type(arg) is type(value) and arg == value for arg in get_args(member)):
                return True  # of a Literal, such as -1
            continue
        right_type = type(value) is int or (member is float and math.isfinite(value))
        ranges = [mark for mark in marks if isinstance(mark, Between)]
        inside = all(
            (r.low < value or (value == r.low and r.ends[0] == "["))
            and (value < r.high or (value == r.high and r.ends[1] == "]"))
            for r in ranges
        )
        if right_type and inside and (type(value) is float or abs(value) < 2**63):
            return True
    return False


def _shipped() -> list[Experiment]:
    files = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
    return [load_config(str(file)) for file in files if file.stem != "olmo_yaml"]


def _with(experiment: Experiment, where: schema.Keys, value: Any) -> Experiment:
    """An experiment with another value somewhere, as Python code would make it."""
    change = lambda keys, old, hint: value if keys == where else old  # noqa: E731
    return schema.rebuild(experiment, Experiment, change)


def _refused(experiment: Experiment, keys: schema.Keys, value: float, hint: Any) -> list[str]:
    """The errors for a value, given in Python and as text; one that is not declared has them."""
    path, errors = ".".join(keys), []
    for is_text in (False, True):
        try:
            resolve(
                _changed(experiment, (path, repr(value)))
                if is_text
                else _with(experiment, keys, value)
            )
        except InputError as error:
            errors.append(str(error))
        else:
            assert _is_declared(value, hint), f"{path}={value} passes, though nothing declares it"
    return errors


def test_odd_numbers_in_any_field_of_any_config_are_declared_or_refused():
    """Each field once for each kind of experiment that has it: the rest is the same."""
    tried = set()
    for experiment in _shipped():
        kind = (type(experiment.model), type(experiment.data), type(experiment.optim.schedule))
        for keys, _, hint in schema.walk(experiment, Experiment):
            is_number = any(member in (int, float) for member in schema.members(hint))
            if not is_number or (kind, keys) in tried:
                continue
            tried.add((kind, keys))
            for value in ODD:
                for line in _refused(experiment, keys, value, hint):
                    assert "\n" not in line
                    assert ".".join(keys) in line or _is_declared(value, hint)
    assert len(tried) > 200


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("optim.schedule.peak", -1, "must be from 0 to 1000"),
        ("optim.betas.0", 1.5, "must be 0 or more and below 1"),
        ("optim.weight_decay", -1, "must be from 0 to 1000"),
        ("optim.clip_norm", -1, "must be positive, or none"),
        ("optim.epsilon", -1, "must be above 0 and 1 or less"),
        ("seed", -1, "must be from 0 to 4294967295"),
        ("seed", 2**32, "must be from 0 to 4294967295"),
        ("monitor.every", 0, "must be positive"),
        ("data.seq_len", 1, "must be from 2 to 134217728"),
        ("model.d_model", 10**12, "must be from 1 to 16777216"),
        ("train.duration", 2**31, "must be from 0 to 2147483647"),
        ("mesh.tensor", 0, "must be positive, or -1"),
    ],
)
def test_nonsense_is_refused_with_its_field_value_and_range(
    experiment: Experiment, path: str, value: float, message: str
):
    with pytest.raises(InputError) as error:
        resolve(_with(experiment, tuple(path.split(".")), value))
    assert str(error.value) == f"--config.{path}={value}: {message}"


@pytest.mark.parametrize("path", ["train.duration", "optim.schedule.warmup", "checkpoint.every"])
def test_more_steps_than_devices_count_are_refused(experiment: Experiment, path: str):
    with pytest.raises(InputError) as error:
        resolve(_changed(experiment, (path, "1e30 steps")))
    makes = f"makes {10**30} steps: must be from 0 to 2147483647"
    assert str(error.value) == f"--config.{path}=1e30 steps {makes}"


@pytest.mark.parametrize(
    "path",
    ["eval.every", "monitor.signals_every", "checkpoint.every", "optim.schedule.warmup"],
)
def test_0_is_legal_where_it_means_off(experiment: Experiment, path: str):
    resolved = resolve(_changed(experiment, (path, "0 steps")))
    assert (path, 0) in [
        (".".join(keys), value) for keys, value, _ in schema.walk(resolved, type(resolved))
    ]


def test_a_text_of_no_steps_is_refused_where_there_must_be_some(experiment: Experiment):
    with pytest.raises(InputError, match=r"monitor.every=0 steps makes 0 steps: must be positive"):
        resolve(_changed(experiment, ("monitor.every", "0 steps")))


def test_paths_are_expanded_before_they_are_kept(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", "/home/ada")
    changed = _changed(experiment, ("data.root", "~/tokens"), ("init_from", "~/runs/a"))
    kept = to_dict(resolve(changed))
    assert kept["data"]["root"] == "/home/ada/tokens"
    assert kept["init_from"] == "/home/ada/runs/a"


@pytest.mark.parametrize("path", ["data.root", "data.file_list", "init_from", "eval.tokenizer"])
def test_an_empty_path_is_refused(experiment: Experiment, path: str):
    with pytest.raises(InputError, match=f"--config.{path}=: is empty: write a path, or none"):
        _changed(experiment, (path, ""))


def test_durations_become_whole_steps_rounded_up(experiment: Experiment):
    """A step is 16 sequences of 16 tokens."""
    resolved = resolve(
        _changed(
            experiment,
            ("train.duration", "1e6 tokens"),
            ("optim.schedule.warmup", "1025 tokens"),
            ("eval.every", "100 sequences"),
            ("checkpoint.every", "7 steps"),
            ("checkpoint.keep_every", "2 epochs"),
            ("data.num_examples", "40"),
        )
    )
    assert resolved.train.duration == 3907  # 1e6 / 256 = 3906.25
    assert resolved.optim.schedule.warmup == 5
    assert resolved.eval.every == 7
    assert resolved.checkpoint.every == 7
    assert resolved.checkpoint.keep_every == 5


def test_two_trillion_tokens_of_olmo_7b(experiment: Experiment):
    big = _changed(
        experiment,
        ("train.duration", "2e12 tokens"),
        ("train.batch_size", "2048"),
        ("data.seq_len", "2048"),
    )
    assert resolve(big).train.duration == 476_838


def test_resolving_changes_nothing_else_and_is_final(experiment: Experiment):
    resolved = resolve(experiment)
    paths = [path for path, _, _ in diff(to_dict(experiment), to_dict(resolved))]
    assert paths == [
        "checkpoint.every",
        "eval.every",
        "monitor.every",
        "monitor.signals_every",
        "optim.schedule.warmup",
        "train.duration",
    ]
    assert resolve(resolved) == resolved
    assert from_dict(Resolved, to_dict(resolved)) == resolved


def test_the_timeline_holds_what_the_config_says_in_steps(experiment: Experiment):
    changes = {
        "train.duration": "20 steps",
        "train.stages.0.duration": "2 steps",
        "train.stages.0.batch_size": "4",
        "train.stages.1.duration": "24 sequences",
        "train.stages.1.batch_size": "8",
        "eval.every": "0 steps",
        "checkpoint.every": "72 sequences",
        "checkpoint.keep_every": "0 steps",
        "train.recheck_every": "64 sequences",
        "monitor.every": "9 steps",
        "monitor.signals_every": "11 steps",
    }
    timeline = resolve(_changed(experiment, *changes.items())).timeline
    assert timeline == Timeline(
        num_steps=20,
        pace=Pace(16, ((2, 4), (3, 8))),
        stage_ends=(2, 5),
        eval_every=0,
        save_every=8,  # 2 x 4 + 3 x 8 + 2.5 x 16
        save_seconds=None,
        log_every=9,
        signals_every=11,
        stall=None,
        recheck_every=7,  # 2 x 4 + 3 x 8 + 2 x 16
        keep_every=None,
    )
    assert [list(timeline.pace.samples(step)) for step in (2, 3)] == [
        [*range(4, 8)],
        [*range(8, 16)],
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (("train.batch_size", "0"), "--config.train.batch_size=0: must be from 1 to 16777216"),
        (
            ("train.microbatch_size", "-1"),
            "--config.train.microbatch_size=-1: must be from 1 to 16777216",
        ),
        (("eval.max_examples", "0"), "--config.eval.max_examples=0: must be positive"),
        (("checkpoint.keep_last", "0"), "--config.checkpoint.keep_last=0: must be positive"),
        (("data.seq_len", "0"), "--config.data.seq_len=0: must be from 2 to 134217728"),
    ],
)
def test_what_cannot_be_is_one_line(experiment: Experiment, override, message: str):
    with pytest.raises(InputError, match=message):
        resolve(_changed(experiment, override))


def test_epochs_are_counted_where_the_data_declares_no_number(experiment: Experiment):
    num_examples = experiment.data.open(seed=0, limits={"tokens": 64}).num_examples
    epochs = _changed(experiment, ("train.duration", "2 epochs"), ("eval.every", "0.5 epochs"))
    resolved = resolve(epochs)
    assert resolved.train.duration == -(-2 * num_examples // 16)
    assert resolved.eval.every == -(-num_examples // 32)
    assert resolved.data.num_examples == num_examples
    assert resolve(resolved) == resolved
    assert resolve(experiment).data.num_examples is None  # nothing asked for it


def test_declared_epochs_need_no_data(experiment: Experiment):
    elsewhere = ("data.root", "nowhere"), ("train.duration", "2 epochs")
    declared = resolve(_changed(experiment, *elsewhere, ("data.num_examples", "40")))
    assert declared.train.duration == 5
    with pytest.raises(
        InputError, match="--config.train.duration: .*set data.num_examples.*nowhere"
    ):
        resolve(_changed(experiment, *elsewhere))


def test_epochs_of_a_mixture_are_counted_with_its_stages(experiment: Experiment):
    source = MixtureSource(root=experiment.data.root)
    late = MixtureStage(at="3 steps", weights={"a": 0.5, "b": 1.0})
    data = Mixture(sources={"a": source, "b": source}, stages=(late,), seq_len=16, window=30)
    mixed = replace(experiment, data=data, train=replace(experiment.train, duration="2 epochs"))
    resolved = resolve(mixed)
    stages = (replace(late, at=48),)
    counted = replace(data, stages=stages).open(seed=0, limits={"tokens": 64}).num_examples
    assert resolved.data.stages == stages and resolved.data.num_examples == counted
    assert resolved.train.duration == -(-2 * counted // 16)
    train = replace(mixed.train, stages=(Stage("1 epochs", 8),))
    with pytest.raises(InputError, match=r"train\.stages\.0\.duration.* need data.num_examples"):
        resolve(replace(mixed, train=train))


def test_steps_to_leave_out_become_samples(experiment: Experiment):
    """Their positions count what is left out before them."""
    resolved = resolve(_changed(experiment, ("train.duration", "20 steps")))
    assert skip_steps(resolved, []) is resolved
    once = skip_steps(resolved, ["2-3"])
    assert once.data.skip == ("16-47",)
    assert skip_steps(once, ["1", "4"]).data.skip == ("0-47", "80-95")
    with pytest.raises(InputError, match="--skip_steps=19-21: the run has steps 1 to 20"):
        skip_steps(resolved, ["19-21"])
    with pytest.raises(InputError, match="--config.data.skip: 1-5 and 4-9 overlap"):
        resolve(_changed(experiment, ("data.skip", "1-5,4-9")))


def test_a_local_folder_that_would_get_no_save_is_refused(experiment: Experiment):
    with pytest.raises(InputError, match="local_dir gets nine of ten saves, and .*every=0 makes"):
        resolve(_changed(experiment, ("checkpoint.local_dir", "/ssd"), ("checkpoint.every", "0")))
