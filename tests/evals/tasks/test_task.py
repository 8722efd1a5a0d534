from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.evals.tasks.task import Choice, Item, Task, load_own, take

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


GOOD = '{"context": "c", "continuations": [" a", " b"], "answer": 1}'


def test_each_line_is_a_question(tmp_path: Path):
    file = tmp_path / "own.jsonl"
    full = '{"context": "d", "continuations": [" a"], "answer": 0, "id": 7,'
    file.write_text(f'{GOOD}\n\n{full} "unconditional_context": "e"}}\n')
    first, second = load_own(file, "own").items
    assert (first.name, first.answer, first.has_unconditional) == ("1", 1, False)
    assert (second.name, second.choices) == ("7", (Choice("d", " a", "e"),))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON: Expecting property name"),
        ("[]", "line 2: is not a JSON object"),
        ('{"contxt": "c"}', "line 2: unknown field 'contxt'. Did you mean 'context'?"),
        ('{"continuations": [" a"], "answer": 0}', "line 2: 'context' must be a text"),
        ('{"context": "", "continuations": [" a"], "answer": 0}', "that is not empty"),
        ('{"context": "c", "continuations": " a", "answer": 0}', "must be a list of texts"),
        ('{"context": "c", "continuations": ["a", ""], "answer": 0}', "texts that are not empty"),
        ('{"context": "c", "continuations": ["a"], "answer": 1}', "a number from 0 to 0"),
        ('{"context": "c", "continuations": ["a", "b"], "answer": true}', "a number from 0 to 1"),
        ('{"context": "c", "continuations": ["a", "b"]}', "'answer' must be a number"),
    ],
)
def test_a_malformed_line_is_named_with_its_file(tmp_path: Path, line: str, message: str):
    file = tmp_path / "own.jsonl"
    file.write_text(f"{GOOD}\n{line}\n")
    with pytest.raises(InputError) as error:
        load_own(file, "own")
    assert str(error.value).startswith(f"{file}, line 2: ") and message in str(error.value)


def test_a_file_without_questions_is_refused(tmp_path: Path):
    file = tmp_path / "own.jsonl"
    file.write_text("\n")
    with pytest.raises(InputError, match="has no questions"):
        load_own(file, "own")
