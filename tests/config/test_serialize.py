import json
from dataclasses import dataclass, field, replace
from typing import Literal

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import ABSENT, diff, from_dict, to_dict


@dataclass(frozen=True)
class Constant:
    value: float = 1.0


@dataclass(frozen=True)
class WarmupCosine:
    peak: float = 1e-3
    warmup: int | str = 10

    def __post_init__(self):
        if self.peak < 0:
            raise ValueError("peak must not be negative")


@dataclass(frozen=True)
class Optimizer:
    schedule: Constant | WarmupCosine = Constant()
    average: Constant | None = None
    clip: float | None = 1.0


@dataclass(frozen=True)
class Experiment:
    seed: int = 0
    mode: Literal["a", "b"] = "a"
    optim: Optimizer = Optimizer()
    shape: tuple[int, int] = (1, 2)
    tags: tuple[str, ...] = ()
    stages: tuple[Constant | WarmupCosine, ...] = ()
    nested: tuple[tuple[int, ...], ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    sets: dict[str, Constant] = field(default_factory=dict)
    layers: tuple[int, ...] | Literal["all"] = "all"


FULL = Experiment(
    seed=2**60 + 1,
    mode="b",
    optim=Optimizer(WarmupCosine(0.1 + 0.2, "5 steps"), Constant(1), None),
    shape=(3, 4),
    tags=("x", "y,z"),
    stages=(WarmupCosine(), Constant(2.0)),
    nested=((), (1, 2)),
    weights={"c4": 1, "a.b": 0.5},
    sets={"pile": Constant(3.0)},
    layers=(0, 5),
)


@pytest.mark.parametrize("config", [Experiment(), FULL])
def test_a_config_comes_back_from_json_exactly(config):
    restored = from_dict(Experiment, json.loads(json.dumps(to_dict(config), allow_nan=False)))
    assert restored == config
    assert repr(restored) == repr(config)  # Tells 1 from 1.0.


def test_a_choice_is_written_by_name_and_a_plain_group_is_not():
    data = to_dict(FULL)
    assert data["optim"]["schedule"]["class"] == "warmup_cosine"
    assert [stage["class"] for stage in data["stages"]] == ["warmup_cosine", "constant"]
    assert "class" not in data
    assert "class" not in data["optim"]


def test_an_invalid_config_is_not_written():
    with pytest.raises(InputError, match=r"^--config\.seed: expected int, got 'x'$"):
        to_dict(replace(FULL, seed="x"))


def test_missing_fields_take_their_defaults():
    assert from_dict(Experiment, {}) == Experiment()
    data = {"optim": {"schedule": {"class": "warmup_cosine"}, "average": {}}}
    assert from_dict(Experiment, data).optim == Optimizer(WarmupCosine(), Constant())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sead": 1}, "--config.sead: no such field in Experiment. Did you mean 'seed'?"),
        (
            {"optim": {"clp": 1}},
            "--config.optim.clp: no such field in Optimizer. Did you mean 'clip'?",
        ),
        ({"seed": 1.0}, "--config.seed: expected int, got 1.0"),
        ({"seed": None}, "--config.seed: expected int, got None"),
        ({"shape": [1, 2, 3]}, "--config.shape: expected int,int, got [1, 2, 3]"),
        ({"nested": [[1], ["x"]]}, "--config.nested.1.0: expected int, got 'x'"),
        ({"weights": {"c4": "x"}}, "--config.weights.c4: expected finite float, got 'x'"),
        ({"optim": 3}, "--config.optim: expected optimizer, got 3"),
        (
            {"optim": {"schedule": {"class": "cosine"}}},
            "--config.optim.schedule=cosine: expected one of constant, warmup_cosine",
        ),
        (
            {"optim": {"schedule": {"value": 1}}},
            "--config.optim.schedule: expected one of constant, warmup_cosine, got {'value': 1}",
        ),
        (
            {"stages": [{"class": "constant", "peak": 1}]},
            "--config.stages.0.peak: no such field in Constant. Its fields are value.",
        ),
        (
            {"optim": {"schedule": {"class": "warmup_cosine", "peak": -1}}},
            "--config.optim.schedule: peak must not be negative",
        ),
    ],
)
def test_reading_is_as_strict_as_overriding(data, message):
    with pytest.raises(InputError) as error:
        from_dict(Experiment, data)
    assert str(error.value) == message


def test_equal_configs_do_not_differ():
    assert diff(to_dict(FULL), to_dict(FULL)) == []


def test_differences_are_leaves_in_the_order_of_their_paths():
    changed = to_dict(
        Experiment(
            seed=FULL.seed,
            mode="a",
            optim=Optimizer(Constant(1.0), Constant(1), None),
            shape=(3, 5),
            tags=FULL.tags,
            stages=FULL.stages[:1],
            nested=FULL.nested,
            weights={"a.b": 0.5},
            sets=FULL.sets,
            layers="all",
        )
    )
    assert diff(to_dict(FULL), changed) == [
        ("layers", [0, 5], "all"),
        ("mode", "b", "a"),
        ("optim.schedule.class", "warmup_cosine", "constant"),
        ("optim.schedule.peak", 0.1 + 0.2, ABSENT),
        ("optim.schedule.value", ABSENT, 1.0),
        ("optim.schedule.warmup", "5 steps", ABSENT),
        ("shape", [3, 4], [3, 5]),
        ("stages.1.class", "constant", ABSENT),
        ("stages.1.value", 2.0, ABSENT),
        ("weights.c4", 1, ABSENT),
    ]


def test_indices_are_ordered_as_numbers():
    a = {"stages": [{"x": 0} for _ in range(11)]}
    b = {"stages": [{"x": 1} for _ in range(11)]}
    assert [path for path, _, _ in diff(a, b)] == [f"stages.{index}.x" for index in range(11)]


def test_none_and_absent_are_told_apart():
    assert diff({"a": None}, {}) == [("a", None, ABSENT)]


def test_an_emptied_container_is_a_difference():
    assert diff({"tags": []}, {"tags": ["x"]}) == [("tags", [], ["x"])]
    assert diff({"sets": {}}, {"sets": {"a": 1}}) == [("sets.a", ABSENT, 1)]
