from pathlib import Path

from jaxpretrain.evals.tasks.rendered import load_rendered, rendered_variants
from jaxpretrain.evals.tasks.task import Choice


def test_variants_are_listed_by_task(package: Path):
    assert rendered_variants() == {"colours": ["mc_5shot", "rc_0shot"], "roses": ["bpb_0shot"]}


def test_rows_of_a_question_are_its_choices_with_their_unconditional_contexts(package: Path):
    task = load_rendered("colours", "rc_0shot", "name")
    assert (task.name, task.metric, len(task.items)) == ("name", "len_norm", 3)
    context = "Question: Which is red?\nAnswer:"
    assert task.items[0].choices == (
        Choice(context, " sky", "Answer:"),
        Choice(context, " rose", "Answer:"),
    )
    assert [item.answer for item in task.items] == [1, 0, 1]
    assert all(item.has_unconditional for item in task.items)


def test_without_such_rows_there_is_no_unconditional_context(package: Path):
    task = load_rendered("colours", "mc_5shot", "name")
    assert not any(item.has_unconditional for item in task.items)
    assert task.is_multiple_choice and task.metric == "acc"


def test_where_only_the_gold_answer_is_scored_its_label_is_no_number(package: Path):
    task = load_rendered("roses", "bpb_0shot", "name")
    assert task.metric == "bpb" and not task.is_multiple_choice
    assert [item.answer for item in task.items] == [0, 0, 0]
