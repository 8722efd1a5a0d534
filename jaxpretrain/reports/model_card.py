"""The `README.md` beside an export: what the folder of a run tells of it, for the hub's page."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxpretrain.config.serialize import Document
from jaxpretrain.diagnosis.history import History, read_history
from jaxpretrain.storage.jsonl import has_lines
from jaxpretrain.storage.run_documents import METRICS, ExperimentFile, read_document

CARD = "README.md"

_HEAD = """\
---
license:  # fill in an identifier of the hub, such as apache-2.0; without one nobody may use it
library_name: transformers
pipeline_tag: text-generation
tags:
- jaxpretrain
---
"""

_USE = """
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER_OR_NAME")
model = AutoModelForCausalLM.from_pretrained("FOLDER_OR_NAME")
inputs = tokenizer("The", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))
```

## For the author to add

What the model is meant for and what it is not, the languages and the licence of the data, and who
made it.
"""


def model_card(
    run: Path, step: int, hugging_face: Document, num_parameters: int, num_merged: int = 1
) -> str:
    """Returns the card of the checkpoint at a step of a run that was exported with this config.

    Of several checkpoints whose weights were averaged, the run is the first; losses of the average
    are not known.
    """
    document = read_document(run / "experiment.json", ExperimentFile)
    history = read_history(run / METRICS).until(step)
    parts = [f"{_HEAD}\n# {run.name}\n", _summary(document, history, step), ""]
    if num_merged > 1:
        mean = f"The weights are the mean of {num_merged} checkpoints; the facts are of the first."
        parts += [mean, ""]
    facts = _facts(document, history, hugging_face, num_parameters)
    parts += ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in facts)]
    if num_merged == 1 and (scores := list(_scores(history))):
        parts += ["", "## Losses and evaluations", ""]
        parts += ["| Measured | Value | At step |", "| --- | --- | --- |", *scores]
    config = {name: document["config"].get(name) for name in ("model", "optim")}
    parts += ["", "## Settings", "", "<details><summary>Model and optimizer</summary>", ""]
    parts += ["```json", json.dumps(config, indent=1, sort_keys=True), "```", "", "</details>"]
    return "\n".join(parts) + "\n" + _USE


def _summary(document: Document, history: History, step: int) -> str:
    seen = history.last(f"train/{history.unit}")
    amount = f" on {seen:,.0f} {history.unit}" if seen else ""
    return f"A language model, trained for {step:,} steps{amount} by jaxpretrain."


def _facts(
    document: Document, history: History, hugging_face: Document, num_parameters: int
) -> Iterator[tuple[str, str]]:
    config = document["config"]
    yield "Architecture", f"`{', '.join(hugging_face.get('architectures') or ['unknown'])}`"
    yield "Parameters", f"{num_parameters:,}"
    for name, key in {
        "Layers": "num_hidden_layers",
        "Width": "hidden_size",
        "Context": "max_position_embeddings",
        "Rows of the embedding": "vocab_size",
        "Type of the weights": "dtype",
    }.items():
        if key in hugging_face:
            value = hugging_face[key]
            yield name, f"{value:,}" if isinstance(value, int) else f"{value}"
    if data := document.get("data_description"):
        # The folders of one machine say nothing to others.
        yield "Data", re.sub(r"(?<!\w)(\w+:/)?/[^\s:;,]*/", "", data).replace("|", "\\|")
    training = config.get("train") or {}
    for name, key in {"Planned steps": "duration", "Batch": "batch_size"}.items():
        if training.get(key) is not None:
            yield name, f"{training[key]}"
    rate = history.last("train/learning_rate")
    if rate is not None:
        yield "Last learning rate", f"{rate:.3g}"
    if config.get("seed") is not None:
        yield "Seed", f"{config['seed']}"
    versions = document.get("versions") or {}
    named = [f"{name} {versions[name]}" for name in ("jax", "jaxpretrain") if name in versions]
    if named:
        yield "Trained with", ", ".join(named)
    if devices := document.get("devices"):
        yield "Devices", str(devices)


def _scores(history: History) -> Iterator[str]:
    """Yields rows of the last training loss and of the last value of each evaluation."""
    for name in ("train/loss", *history.names("eval/")):
        series = history[name].finite
        if len(series):
            yield f"| `{name}` | {series.values[-1]:.4f} | {int(series.steps[-1]):,} |"


def write_card(
    folder: Path, run: Path, step: int, num_parameters: int, num_merged: int = 1
) -> None:
    """Writes the card of a run beside an export in Hugging Face's form.

    A folder without metrics, which was converted and not trained here, gets none: all that is known
    of it is in `config.json`.
    """
    if not has_lines(run / METRICS):
        return
    config: Mapping[str, object] = json.loads((folder / "config.json").read_text())
    card = model_card(run, step, dict(config), num_parameters, num_merged)
    (folder / CARD).write_text(card)
