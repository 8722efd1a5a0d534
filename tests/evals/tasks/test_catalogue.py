from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.evals.tasks.catalogue import GROUPS, select
from jaxpretrain.evals.tasks.task import Choice, Task
from jaxpretrain.evals.tasks.templates import MMLU, MMLU_VARIANTS, TEMPLATES


def load_task(name: str) -> Task:
    (task,) = select([name]).tasks
    return task


def test_a_bare_name_means_rc_0shot_and_a_result_is_named_as_typed(package: Path):
    bare, full = load_task("colours"), load_task("colours:rc_0shot")
    assert (bare.name, full.name) == ("colours", "colours:rc_0shot")
    assert bare.items == full.items != load_task("colours:mc_5shot").items


def test_a_bare_name_of_a_task_with_one_variant_is_that_one(package: Path):
    assert load_task("roses").items == load_task("roses:bpb_0shot").items


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("colors", "unknown task 'colors'. Did you mean colours?"),
        ("zzz", "unknown task 'zzz'."),
        ("core_smal", "Did you mean core_small?"),
        ("mmlu_steam", "Did you mean mmlu_stem"),
        ("colours:rc_5shot", "task colours has no variant rc_5shot; it has mc_5shot, rc_0shot"),
        ("none.jsonl", "none.jsonl: cannot read this task file"),
    ],
)
def test_an_unknown_name_is_one_line_with_the_nearest(package: Path, name: str, message: str):
    with pytest.raises(InputError) as error:
        load_task(name)
    assert message in str(error.value)


def test_a_file_is_a_task_under_its_path_or_a_name(tmp_path: Path):
    """Without the package."""
    file = tmp_path / "own.jsonl"
    file.write_text('{"context": "c", "continuations": [" a", " b"], "answer": 1}\n')
    assert load_task(str(file)).name == str(file)
    task = load_task(f"mine={file}")
    assert task.name == "mine"
    (item,) = task.items
    assert (item.choices, item.answer) == ((Choice("c", " a"), Choice("c", " b")), 1)


def test_a_group_stands_for_its_members(package: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(GROUPS, "all", ("colours", "roses"))
    selection = select(["colours", "all", "colours:mc_5shot"])
    assert [task.name for task in selection.tasks] == ["colours", "roses", "colours:mc_5shot"]
    assert selection.groups == {"all": ("colours", "roses")}
    assert selection.names == {"colours", "roses", "colours:mc_5shot", "all"}


def test_a_subset_is_the_first_items_or_a_draw_that_repeats(package: Path):
    selection = select(["colours"])
    names = [[item.name for item in t.items] for t in selection.take(2, None).tasks]
    assert names == [["q0", "q1"]]
    draws = [selection.take(2, seed).tasks[0].items for seed in (0, 0, 1, 2, 3)]
    assert draws[0] == draws[1] and len(set(draws)) > 1
    assert all(len(draw) == 2 for draw in draws)
    assert selection.take(10, 0) == selection


def test_members_of_groups_have_names_of_tasks():
    templates = [*TEMPLATES, *MMLU]
    for members in GROUPS.values():
        assert len(set(members)) == len(members)
        for member in members:
            task, _, variant = member.partition(":")
            assert task not in MMLU or variant in MMLU_VARIANTS
            assert task not in GROUPS
    assert {"copa", "rte", "mrpc", "sst2", "commitment_bank"} <= {*templates}
