import pytest

from jaxpretrain.evals.tasks.task import Choice, Item, Task, take

TASK = Task("t", "acc", tuple(Item(str(n), (Choice("a", f" {n}"),)) for n in range(9)))


@pytest.mark.parametrize("size", [1, 4, 9, 20])
def test_the_first_items_are_taken(size: int):
    assert take(TASK, size, None).items == TASK.items[:size]
    assert take(TASK, None, 3) == TASK


def test_a_draw_repeats_by_its_seed_and_keeps_the_order():
    draws = [take(TASK, 4, seed).items for seed in (0, 0, 1, 2)]
    assert draws[0] == draws[1] and len(set(draws)) == 3
    for draw in draws:
        assert len(draw) == 4 and [TASK.items.index(item) for item in draw] == sorted(
            TASK.items.index(item) for item in draw
        )


def test_an_item_is_scored_without_the_question_where_all_choices_can_be():
    asked, plain = Choice("a", " b", "c"), Choice("a", " b")
    assert Item("q", (asked, asked)).has_unconditional
    assert not Item("q", (asked, plain)).has_unconditional
    assert not TASK.is_multiple_choice
    assert Task("t", "acc", (Item("q", (asked, plain)),)).is_multiple_choice
