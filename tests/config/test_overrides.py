from dataclasses import dataclass, field, replace
from typing import Literal

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import apply_overrides, validate


@dataclass(frozen=True)
class Triangular:
    peak: float = 3e-4
    warmup: int | str = 5000


@dataclass(frozen=True)
class WarmupCosine:
    peak: float = 1e-3
    final: float = 0.0


@dataclass(frozen=True)
class WarmupStableDecay:
    peak: float = 1e-3
    decay: int = 100


@dataclass(frozen=True)
class Average:
    half_life: int = 10


@dataclass(frozen=True)
class AdamW:
    momentum: float = 0.9
    schedule: Triangular | WarmupCosine | WarmupStableDecay = Triangular()
    average: Average | None = None
    moment: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class Source:
    path: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class Noise:
    weight: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Data:
    sources: tuple[Source | Noise, ...] = (Source("a"), Source("b"))
    crop: tuple[int, int] = (224, 224)
    weights: dict[str, float] = field(default_factory=lambda: {"c4": 1.0})
    sets: dict[str, Source] = field(default_factory=lambda: {"pile": Source("p")})


@dataclass(frozen=True)
class Train:
    batch_size: int = 32
    microbatch_size: int | Literal["auto"] = "auto"
    deterministic: bool = False

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError("batch_size must be\npositive")


@dataclass(frozen=True)
class Experiment:
    name: str | None = None
    optim: AdamW = AdamW()
    data: Data = field(default_factory=Data)
    train: Train = Train()


def override(*items: str, config: Experiment | None = None) -> Experiment:
    pairs = [(path, value) for path, _, value in (item.partition("=") for item in items)]
    return apply_overrides(config or Experiment(), pairs)


def error_of(*items: str) -> str:
    with pytest.raises(InputError) as error:
        override(*items)
    return str(error.value)


def test_no_overrides_leave_the_config():
    assert override() == Experiment()


def test_only_the_named_field_changes():
    config = override("train.batch_size=64")
    assert config == replace(Experiment(), train=replace(Train(), batch_size=64))


def test_the_last_override_of_a_path_counts():
    assert override("train.batch_size=64", "train.batch_size=128").train.batch_size == 128


def test_every_kind_of_scalar_is_set():
    config = override(
        "name=run=1",
        "optim.moment=bfloat16",
        "train.microbatch_size=4",
        "train.deterministic=true",
        "optim.schedule.warmup=1e9 tokens",
    )
    assert config.name == "run=1"
    assert config.optim.moment == "bfloat16"
    assert config.train == Train(32, 4, True)
    assert config.optim.schedule == Triangular(warmup="1e9 tokens")


def test_none_empties_an_optional_field():
    assert override("name=x", "name=none").name is None


def test_a_class_is_chosen_by_name_and_then_its_fields_are_set():
    config = override("optim.schedule=warmup_stable_decay", "optim.schedule.decay=7")
    assert config.optim.schedule == WarmupStableDecay(decay=7)


def test_choosing_the_class_that_is_there_keeps_its_fields():
    config = override("optim.schedule.peak=1", "optim.schedule=triangular")
    assert config.optim.schedule == Triangular(peak=1.0)


def test_choosing_another_class_starts_from_its_defaults():
    assert override("optim.schedule.peak=1", "optim.schedule=warmup_cosine") == override(
        "optim.schedule=warmup_cosine"
    )


def test_an_optional_group_is_switched_on_and_off():
    on = override("optim.average=average", "optim.average.half_life=3")
    assert on.optim.average == Average(3)
    assert override("optim.average=none", config=on).optim.average is None


def test_tuples_are_set_whole_or_by_index():
    assert override("data.crop=192,256").data.crop == (192, 256)
    assert override("data.crop.1=256").data.crop == (224, 256)


def test_dataclasses_in_a_tuple_are_reached_by_index():
    sources = override("data.sources.1.weight=2", "data.sources.0=noise").data.sources
    assert sources == (Noise(), Source("b", 2.0))


def test_a_tuple_of_choices_is_set_by_their_names():
    assert override("data.sources=noise,source,noise").data.sources == (Noise(), Source(), Noise())
    assert override("data.sources=").data.sources == ()


def test_keys_of_a_dict_are_set_and_added_without_touching_the_original():
    original = Experiment()
    config = override("data.weights.c4=2", "data.weights.pile=3", config=original)
    assert config.data.weights == {"c4": 2.0, "pile": 3.0}
    assert original.data.weights == {"c4": 1.0}


def test_dataclasses_in_a_dict_are_reached_by_key():
    assert override("data.sets.pile.weight=2").data.sets == {"pile": Source("p", 2.0)}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            "optim.shedule=1",
            "--config.optim.shedule: no such field in AdamW. Did you mean 'schedule'?",
        ),
        (
            "optim.shedule.peak=1",
            "--config.optim.shedule: no such field in AdamW. Did you mean 'schedule'?",
        ),
        (
            "optim.schedule=cosine",
            (
                "--config.optim.schedule=cosine: "
                "expected one of triangular, warmup_cosine, warmup_stable_decay. "
                "Did you mean 'warmup_cosine'?"
            ),
        ),
        (
            "batch_size=1",
            "--config.batch_size: no such field in Experiment; there is --config.train.batch_size.",
        ),
        (
            "peak=1",
            "--config.peak: no such field in Experiment; there is --config.optim.schedule.peak.",
        ),
        (
            "optim.weight=1",
            (
                "--config.optim.weight: no such field in AdamW; there is "
                "--config.data.sources.0.weight and "
                "--config.data.sources.1.weight and --config.data.sets.pile.weight."
            ),
        ),
        (
            "xyz=1",
            "--config.xyz: no such field in Experiment. Its fields are name, optim, data, train.",
        ),
        (
            "=1",
            "--config.: no such field in Experiment. Its fields are name, optim, data, train.",
        ),
        (
            "optim.schedule.decay=1",
            (
                "--config.optim.schedule.decay: field 'decay' belongs to warmup_stable_decay; "
                "choose it first: --config.optim.schedule=warmup_stable_decay"
            ),
        ),
        (
            "optim.average.half_life=1",
            (
                "--config.optim.average.half_life: field 'half_life' belongs to average; "
                "choose it first: --config.optim.average=average"
            ),
        ),
        (
            "optim.average.xyz=1",
            (
                "--config.optim.average.xyz: --config.optim.average is none (average | none) "
                "and has no fields"
            ),
        ),
        (
            "optim.momentum.x=1",
            "--config.optim.momentum.x: --config.optim.momentum is 0.9 (float) and has no fields",
        ),
        (
            "train=1",
            (
                "--config.train=1: this is a group of fields; set one of them: "
                "batch_size, microbatch_size, deterministic"
            ),
        ),
        ("optim.momentum=nan", "--config.optim.momentum=nan: expected finite float"),
        ("train.batch_size=1.5", "--config.train.batch_size=1.5: expected int"),
        ("train.microbatch_size=x", "--config.train.microbatch_size=x: expected int or auto"),
        ("data.crop=1", "--config.data.crop=1: expected int,int"),
        (
            "data.crop.2=1",
            "--config.data.crop.2: no such index; --config.data.crop has 2 elements",
        ),
        (
            "data.sources.-1.weight=1",
            "--config.data.sources.-1: no such index; --config.data.sources has 2 elements",
        ),
        (
            "data.sources.0.seed=1",
            (
                "--config.data.sources.0.seed: field 'seed' belongs to noise; "
                "choose it first: --config.data.sources.0=noise"
            ),
        ),
        (
            "data.weights=1",
            "--config.data.weights=1: set one key at a time: --config.data.weights.KEY=value",
        ),
        ("data.weights.new=x", "--config.data.weights.new=x: expected finite float"),
        (
            "data.sets.pil.weight=1",
            "--config.data.sets.pil: no such key. Did you mean 'pile'?",
        ),
        ("data.sets.new=source", "--config.data.sets.new: no such key."),
        ("data.weights.=1", "--config.data.weights.: no such key."),
        (
            "data.sets.pile=source",
            (
                "--config.data.sets.pile=source: this is a group of fields; set one of them: "
                "path, weight"
            ),
        ),
        ("train.batch_size=0", "--config.train.batch_size=0: batch_size must be positive"),
    ],
)
def test_a_bad_override_ends_in_one_clear_line(item, message):
    assert error_of(item) == message


def test_a_config_of_right_types_is_valid():
    validate(Experiment())
    validate(override("optim.average=average", "data.sources=noise"))
    validate(Experiment(optim=AdamW(momentum=1)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(Train(), batch_size=1.5), "--config.batch_size: expected int, got 1.5"),
        (replace(Train(), batch_size=True), "--config.batch_size: expected int, got True"),
        (
            replace(Train(), microbatch_size="8"),
            "--config.microbatch_size: expected int or auto, got '8'",
        ),
        (AdamW(momentum=float("nan")), "--config.momentum: expected finite float, got nan"),
        (replace(AdamW(), schedule=Triangular), "--config.schedule: expected one of triangular, "),
        (replace(Data(), crop=[1, 2]), "--config.data.crop: expected int,int, got [1, 2]"),
        (replace(Data(), crop=(1, 2.5)), "--config.data.crop.1: expected int, got 2.5"),
        (
            Data(sources=(replace(Noise(), seed="x"),)),
            "--config.data.sources.0.seed: expected int, got 'x'",
        ),
        (
            replace(Data(), weights={"c4": "x"}),
            "--config.data.weights.c4: expected finite float, got 'x'",
        ),
    ],
)
def test_a_wrong_type_in_a_config_built_in_python_is_found(config, message):
    if isinstance(config, Data):
        config = Experiment(data=config)
    with pytest.raises(InputError) as error:
        validate(config)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@dataclass(frozen=True)
class Stages:
    stages: tuple[Source, ...] = ()


def test_the_index_after_the_last_adds_an_element():
    """Only that one: an element in between would have to be made up."""
    config = apply_overrides(
        Stages(), [("stages.0.path", "a"), ("stages.1.weight", "2"), ("stages.0.weight", "3")]
    )
    assert config == Stages((Source("a", 3.0), Source("", 2.0)))
    with pytest.raises(InputError, match=r"stages\.1: no such index; --config\.stages has 0"):
        apply_overrides(Stages(), [("stages.1.path", "a")])
    with pytest.raises(InputError, match="no such field in Source"):
        apply_overrides(Stages(), [("stages.0.pat", "a")])


def test_a_value_is_added_to_a_tuple_by_the_index_after_its_last():
    @dataclass(frozen=True)
    class Texts:
        prompts: tuple[str, ...] | Literal["none yet"] = ()

    one = apply_overrides(Texts(), [("prompts.0", "a, b")])
    assert one.prompts == ("a, b",)
    assert apply_overrides(one, [("prompts.1", "c")]).prompts == ("a, b", "c")
    with pytest.raises(InputError, match="prompts.3: no such index; .* has 1 elements"):
        apply_overrides(one, [("prompts.3", "c")])


@pytest.mark.parametrize("text", ["['a fox']", "[1,2]", "(1, 2)", "[]"])
def test_a_list_as_python_writes_it_is_no_value_of_a_tuple(text: str):
    @dataclass(frozen=True)
    class Texts:
        prompts: tuple[str, ...] = ()

    with pytest.raises(InputError, match="--config.prompts"):
        apply_overrides(Texts(), [("prompts", text)])
