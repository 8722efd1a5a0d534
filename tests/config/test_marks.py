from dataclasses import dataclass, field
from typing import Annotated

import pytest

from jaxpretrain.config.marks import Mark, marks_at
from jaxpretrain.config.ranges import Positive
from jaxpretrain.config.schema import complaint, field_types, type_text


@dataclass(frozen=True)
class Folder:
    root: Annotated[str | None, Mark.NO_EFFECT] = None
    size: int = 8


@dataclass(frozen=True)
class Mixed:
    sources: dict[str, Folder] = field(default_factory=dict)
    stages: tuple[Folder, ...] = ()
    pair: tuple[Folder, Annotated[int, Mark.SAMPLE_ORDER]] = (Folder(), 1)


@dataclass(frozen=True)
class Config:
    data: Annotated[Folder | Mixed, Mark.IDENTITY]
    size: Annotated[int, Positive, Mark.NO_EFFECT] = 1
    every: int = 1


IS, NO, SO = Mark.IDENTITY, Mark.NO_EFFECT, Mark.SAMPLE_ORDER


@pytest.mark.parametrize(
    ("path", "marks"),
    [
        ("data", {IS}),
        ("data.class", {IS}),
        ("data.root", {IS, NO}),
        ("data.size", {IS}),
        ("data.sources.web.root", {IS, NO}),
        ("data.sources.web", {IS}),
        ("data.stages.3.root", {IS, NO}),
        ("data.pair.1", {IS, SO}),
        ("data.of_another_version.root", {IS}),
        ("size", {NO}),
        ("every", set()),
        ("unknown", set()),
    ],
)
def test_a_path_has_the_marks_of_its_fields(path: str, marks: set[Mark]):
    assert marks_at(Config, path) == marks


def test_a_mark_is_no_rule_and_no_text():
    hint = field_types(Config)["size"]
    assert type_text(hint) == "int (positive)"
    assert complaint(3, hint) == "" and complaint(0, hint) == "must be positive"
