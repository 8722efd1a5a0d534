from pathlib import Path
from typing import Any

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.evals.tasks.task import Item
from jaxpretrain.evals.tasks.templates import TEMPLATES, load_template, read_arrow

pa = pytest.importorskip("pyarrow")


def write_arrow(folder: Path, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as stream:
        stream.write_table(table)


def _item(package: Path, task: str, row: dict[str, Any]) -> tuple[str, list[str], int, set[Any]]:
    """Context, continuations, answer and unconditional contexts of a data set of one row."""
    write_arrow(package / "hf_datasets" / TEMPLATES[task][0] / "validation", [row])
    (item,) = load_template(task, task).items
    return (*question(item), {choice.unconditional for choice in item.choices})


def question(item: Item) -> tuple[str, list[str], int]:
    (context,) = {choice.context for choice in item.choices}
    return context, [choice.continuation for choice in item.choices], item.answer


def test_copa_joins_premise_and_choice(package: Path):
    row = {"premise": "It rained. ", "choice1": "Floods came.", "choice2": "I slept."}
    row |= {"question": "effect", "label": 1}
    choices = [" floods came.", " i slept."]
    assert _item(package, "copa", row) == ("It rained therefore", choices, 1, {"therefore"})


def test_rte_asks_true_or_false(package: Path):
    row = {"sentence1": "A.", "sentence2": "B.", "label": 0}
    context = "A.\nQuestion: B. True or False?\nAnswer:"
    assert _item(package, "rte", row) == (context, [" True", " False"], 0, {"Answer:"})


def test_commitment_bank_adds_neither(package: Path):
    row = {"premise": "A.", "hypothesis": "b", "label": 2}
    context = "A.\nQuestion: b. True, False or Neither?\nAnswer:"
    choices = [" True", " False", " Neither"]
    assert _item(package, "commitment_bank", row) == (context, choices, 2, {"Answer:"})


def test_mrpc_puts_punctuation_back_and_yes_first(package: Path):
    row = {"sentence1": 'He did n\'t ( go ) , " ok " .', "sentence2": "B", "label": 1}
    context = (
        'Sentence 1: He didn\'t (go),"ok".\nSentence 2: B\n'
        "Question: Do both sentences mean the same thing?\nAnswer:"
    )
    assert _item(package, "mrpc", row) == (context, [" yes", " no"], 0, {"Answer:"})


def test_sst2_asks_for_the_feeling(package: Path):
    context = "it's fine. \nQuestion: Is this sentence positive or negative?\nAnswer:"
    row = {"sentence": "it 's fine . ", "label": 1}
    assert _item(package, "sst2", row) == (context, [" negative", " positive"], 1, {"Answer:"})


def test_questions_with_one_answer_have_one_continuation(package: Path):
    context = "\nQuestion: who?\nAnswer:"
    row = {"question": "who?", "answer": {"value": "me", "aliases": ["I"]}}
    assert _item(package, "trivia_qa_wiki_ppl", row) == (context, [" me"], 0, {"Answer:"})
    row = {"question": "who?", "answer": ["me", "I"]}
    assert _item(package, "natural_qs_open_ppl", row) == (context, [" me"], 0, {"Answer:"})


def test_a_missing_data_set_is_named(tmp_path: Path):
    with pytest.raises(InputError, match="the data set is not there"):
        read_arrow(tmp_path, ["a"])
