from dataclasses import dataclass, field, make_dataclass
from typing import Literal

import pytest

from jaxpretrain.config.describe import FieldInfo, describe, fields_of, format_help
from jaxpretrain.config.errors import InputError
from jaxpretrain.train import experiment


@dataclass(frozen=True)
class Triangular:
    peak: float = 3e-4
    """Highest learning rate,
    reached after the warm-up."""
    warmup: int | str = 5000
    """A duration."""


@dataclass(frozen=True)
class WarmupStableDecay(Triangular):
    warmup: int | str = 100
    """Shorter here."""
    decay: int = 10
    """Steps of the final decay."""


@dataclass(frozen=True)
class AdamW:
    """Not the meaning of a field."""

    schedule: Triangular | WarmupStableDecay = Triangular()
    """Learning rate."""
    moment: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class Source:
    path: str = ""
    """Folder."""


@dataclass(frozen=True)
class Experiment:
    optim: AdamW = AdamW()
    """How gradients become updates."""
    seed: int | None = None
    """Seed of all that is random."""
    sources: tuple[Source, ...] = (Source("a"), Source())
    """What is read."""
    weights: dict[str, float] = field(default_factory=lambda: {"c4": 1.0})
    """Shares."""


def info_of(config: object, path: str) -> FieldInfo:
    [info] = [info for info in describe(config) if info.path == path]
    return info


def test_every_field_is_described_in_order():
    assert [info.path for info in describe(Experiment())] == [
        "optim",
        "optim.schedule",
        "optim.schedule.peak",
        "optim.schedule.warmup",
        "optim.moment",
        "seed",
        "sources",
        "sources.0.path",
        "sources.1.path",
        "weights",
    ]


def test_a_field_has_its_type_value_and_meaning():
    config = Experiment()
    assert describe(config)[1:3] == [
        FieldInfo(
            "optim.schedule", "triangular | warmup_stable_decay", "triangular", "Learning rate."
        ),
        FieldInfo(
            "optim.schedule.peak",
            "float",
            "0.0003",
            "Highest learning rate, reached after the warm-up.",
        ),
    ]
    assert info_of(config, "seed").type_text == "int | none"
    assert info_of(config, "seed").value_text == "none"
    assert info_of(config, "optim.moment").type_text == "float32 | bfloat16"
    assert info_of(config, "sources").value_text == "source,source"
    assert info_of(config, "weights").value_text == "{c4: 1.0}"


def test_a_group_has_a_meaning_only():
    assert info_of(Experiment(), "optim") == FieldInfo(
        "optim", "", "", "How gradients become updates."
    )


def test_a_field_without_a_docstring_has_no_meaning():
    assert info_of(Experiment(), "optim.moment").meaning == ""


def test_meanings_are_inherited_and_may_be_replaced():
    config = AdamW(schedule=WarmupStableDecay())
    assert info_of(config, "schedule.peak").meaning.startswith("Highest learning rate")
    assert info_of(config, "schedule.warmup").meaning == "Shorter here."
    assert info_of(config, "schedule.decay").meaning == "Steps of the final decay."


def test_a_class_without_source_has_fields_without_meanings():
    config = make_dataclass("Made", [("seed", int, 3)], frozen=True)()
    assert describe(config) == [FieldInfo("seed", "int", "3", "")]


def test_help_has_a_section_for_each_group_with_whole_paths():
    text = format_help(describe(Experiment()))
    assert "\n\noptim: How gradients become updates.\n\n  optim.schedule = triangular\n" in text
    assert "\n\noptim.schedule\n\n  optim.schedule.peak = 0.0003\n      float. " in text
    assert "\n\nsources.1\n\n  sources.1.path = (empty)\n" in text
    assert text.count("\n  seed = none\n") == 1
    # Fields of a group stay together even where another group stands between them.
    assert text.index("  optim.moment =") < text.index("\noptim.schedule\n")


def test_help_fits_80_columns():
    infos = [
        FieldInfo("data", "", "", "word " * 50),
        FieldInfo(
            "data.kind", " | ".join(f"choice_{index}" for index in range(20)), "x", "w " * 99
        ),
        FieldInfo("data.long", "str", "folder/" * 10, "Stays on one line."),
    ]
    text = format_help(infos)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("choice_") == 20


def test_help_never_breaks_a_value():
    value = "/long" * 40
    text = format_help([FieldInfo("path", "str", value, "Folder.")])
    assert f"\n      {value}\n      str. Folder.\n" in text


def test_help_of_a_part_has_that_field_and_those_below_it():
    infos = describe(Experiment())
    text = format_help(infos, "optim.schedule")
    assert "optim.schedule.peak" in text and "optim.schedule =" in text
    assert "optim.moment" not in text and "seed" not in text
    assert "optim.moment" in format_help(infos, "optim.moment")
    with pytest.raises(InputError, match="--help_config=optm: .* Did you mean 'optim'?"):
        format_help(infos, "optm")


def test_the_fields_of_a_class_have_their_defaults():
    found = {info.path: info for info in fields_of(experiment.Experiment)}
    assert found["model"].value_text == "required"
    assert found["model"].type_text == "decoder | vit_mae"
    assert found["seed"].type_text.startswith("int")
    assert found["init_from"].value_text == "none"
    assert all(info.meaning for info in found.values())
