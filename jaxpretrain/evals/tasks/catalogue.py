"""Tasks and groups of tasks by name.

A name is `task` (its variant rc_0shot), `task:variant`, a file `FILE.jsonl` or `NAME=FILE.jsonl`,
or the name of a group. Results carry the name as it was typed.
"""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.paths import expand
from jaxpretrain.evals.tasks.package import load_rendered, rendered_variants
from jaxpretrain.evals.tasks.task import Task, load_own, take
from jaxpretrain.evals.tasks.templates import (
    MMLU,
    MMLU_VARIANTS,
    TEMPLATES,
    load_mmlu,
    load_template,
)

_DEFAULT = "rc_0shot"

_MMLU = " ".join(f"{task}:var {task}:mc_5shot {task}:test_mc_5shot" for task in MMLU)
_OLMO7B = "piqa hellaswag winogrande openbookqa sciq arc_easy copa rte commitment_bank mrpc sst2"
_OLMO2 = (
    "piqa hellaswag winogrande openbookqa boolq sciq arc_easy arc_challenge copa csqa socialiqa "
    f"{_MMLU} basic_arithmetic trivia_qa_wiki_ppl natural_qs_open_ppl"
)
_SKILLS = "arithmetic coding common_knowledge logical_reasoning pattern string_operations"
_ABILITIES = (f"basic_skills_{skill}:rc_5shot" for skill in _SKILLS.split())

GROUPS: dict[str, tuple[str, ...]] = {
    "core_small": ("arc_easy", "piqa", "sciq", "hellaswag", "winogrande", "copa"),
    "olmo7b_inloop": tuple(_OLMO7B.split()),
    "olmo2_inloop": tuple(_OLMO2.split()),
    "abilities": (*_ABILITIES, "copycolors:10way"),
}
"""The tasks of each group. `core_small` tells small models apart soonest; the two `inloop` groups
are those of the training of OLMo-7B and OLMo-2-7B; `abilities` are simple skills."""


@dataclass(frozen=True)
class Selection:
    """The tasks and groups of a list of names."""

    tasks: tuple[Task, ...]
    groups: dict[str, tuple[str, ...]]
    """Names of the tasks of each group."""

    @property
    def names(self) -> set[str]:
        """The names of tasks and groups, which results go by."""
        return {task.name for task in self.tasks} | set(self.groups)

    def take(self, size: int | None, seed: int | None) -> "Selection":
        """Returns at most `size` items of each task: the first ones, or drawn by a seed."""
        return replace(self, tasks=tuple(take(task, size, seed) for task in self.tasks))


def select(names: Iterable[str]) -> Selection:
    """Loads tasks and groups; a task that is named twice is there once. Raises as `find_tasks`."""
    names = list(names)
    groups = {name: GROUPS[name] for name in names if name in GROUPS}
    return Selection(tuple(load() for load in find_tasks(names)), groups)


def find_tasks(names: Iterable[str]) -> list[Callable[[], Task]]:
    """Returns the loaders of tasks and of groups' tasks, once each; InputError for a wrong name."""
    members = [member for name in names for member in GROUPS.get(name, (name,))]
    return [_find_task(name) for name in dict.fromkeys(members)]


def _find_task(name: str) -> Callable[[], Task]:
    given, equals, path = name.partition("=")
    if name.endswith(".jsonl"):
        own = load_own(expand(path if equals else name, "task"), given if equals else name)
        return lambda: own
    task, _, variant = name.partition(":")
    templates = {task: [_DEFAULT] for task in TEMPLATES}
    variants = rendered_variants() | templates | {task: [*MMLU_VARIANTS] for task in MMLU}
    if task not in variants:
        near = " or ".join(difflib.get_close_matches(task, [*variants, *GROUPS], n=3))
        raise InputError(f"unknown task '{name}'." + (f" Did you mean {near}?" if near else ""))
    known = variants[task]
    if not variant:
        variant = known[0] if len(known) == 1 else _DEFAULT
    if variant not in known:
        raise InputError(f"task {task} has no variant {variant}; it has {', '.join(known)}")
    if task in TEMPLATES:
        return partial(load_template, task, name)
    return partial(load_mmlu if task in MMLU else load_rendered, task, variant, name)
