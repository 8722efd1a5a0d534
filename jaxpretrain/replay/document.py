"""A kept replay: the folder `replays/NAME` of a run, with one document and pictures.

The document stands alone: reports show it without the run's data, its devices or its checkpoints.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from jaxpretrain.config.serialize import Document
from jaxpretrain.data.images.image_codec import encode_png
from jaxpretrain.data.token_files.tokenizer import read_tokenizer, token_texts
from jaxpretrain.replay.epoch import Epoch
from jaxpretrain.replay.microscope import Part, View
from jaxpretrain.replay.proof import Verdict, sum_up
from jaxpretrain.replay.stretch import Step, Stretch
from jaxpretrain.replay.suspects import Suspect, describe
from jaxpretrain.storage.files import atomic_file, write_atomically
from jaxpretrain.storage.jsonl import rounded, to_numbers
from jaxpretrain.storage.run_documents import REPLAY

MOST_ROWS = 20
"""The largest number of files, documents or examples in a table."""
RARE = 10
"""The number of rare tokens of an example that are named."""


def describe_replay(
    stretch: Stretch,
    steps: Sequence[Step[View]],
    verdicts: Sequence[Verdict],
    found: Sequence[Suspect],
    around: Epoch | None,
) -> Document:
    """Returns the document of a replay, without arms and comparisons."""
    views = [step.seen for step in steps if step.seen is not None]
    examples = [one for view in views for one in view.examples]
    parts = [one for view in views for one in view.documents]
    again = {} if around is None else around.again
    return {
        "steps": [stretch.first, stretch.last],
        "from": stretch.start,
        "notes": list(stretch.notes),
        "proof": {"words": sum_up(verdicts), "steps": [asdict(one) for one in verdicts]},
        "suspects": [asdict(one) for one in found],
        "metrics": [_metrics(stretch, step) for step in steps],
        "signals": {
            str(step.number): {name: to_numbers(np.asarray(x)) for name, x in step.signals.items()}
            for step in steps
            if step.number >= stretch.first
        },
        "sources": _sums(examples, lambda one: one.place.source),
        "files": _sums(examples, lambda one: one.place.group),
        "documents": [
            {**_part(one), "again": again.get(one, [])[:MOST_ROWS]}
            for one in dict.fromkeys([*_highest(parts), *_highest(again)])
        ],
        "epoch_share": None if around is None else around.share,
        "examples": [_part(one) for one in _highest(examples)],
        "arms": [],
        "twice": None,
        "against": None,
    }


def closer(
    stretch: Stretch, views: Sequence[View], around: Epoch | None, num_examples: int
) -> tuple[list[Document], dict[str, np.ndarray]]:
    """Returns examples with the loss of each token or patch, and pictures by their file names.

    They are those with the largest gradients and those with the highest losses, half and half.
    """
    known = [(view, one) for view in views for one in view.examples if one.gradient is not None]
    by_gradient = sorted(known, key=lambda pair: -(pair[1].gradient or 0.0))
    by_loss = sorted(known, key=lambda pair: -np.nan_to_num(pair[1].loss))
    half = -(-num_examples // 2)
    chosen = {(one.step, one.row): (view, one) for view, one in by_gradient[:half]}
    for view, one in by_loss:
        if len(chosen) < num_examples:
            chosen[one.step, one.row] = (view, one)
    texts = _texts(stretch)
    shown, pictures = [], {}
    for view, one in chosen.values():
        document = _part(one)
        document["losses"] = to_numbers(view.losses[one.row])
        if "tokens" in view.rows:
            tokens = view.rows["tokens"][one.row]
            document["tokens"] = tokens.tolist()
            document["texts"] = [_text(texts, token) for token in tokens.tolist()]
            if around is not None:
                document["rare"] = _rare(tokens, view.losses[one.row], around, texts)
            ids, counts = np.unique(tokens, return_counts=True)
            most = int(ids[counts.argmax()])
            document["commonest"] = [_text(texts, most), float(counts.max() / len(tokens))]
        if one.row in view.pictures:
            name = f"{one.step}-{one.row}.png"
            pictures[name] = view.pictures[one.row]
            document["picture"] = name
        shown.append(document)
    return shown, pictures


def write_replay(folder: Path, document: Document, pictures: Mapping[str, np.ndarray]) -> None:
    """Writes a replay into its folder, which replaces an earlier one there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in pictures.items():
        with atomic_file(folder / name) as file:
            file.write(encode_png(pixels))
    write_atomically(folder / REPLAY, json.dumps(document) + "\n")


def _metrics(stretch: Stretch, step: Step[View]) -> Document:
    """Returns the numbers of a step, with what clipping left of its gradient."""
    left = stretch.experiment.optim.clipped_to(step.number, step.metrics["grad_norm"])
    return {"step": step.number, **step.metrics, "clipped_to": left}


def _part(one: Part) -> Document:
    """Returns an example or a document of a batch, in words and numbers."""
    return {
        "step": one.step,
        "row": one.row,
        "sample": one.place.sample,
        "place": one.place.name,
        "words": describe(one),
        "source": one.place.source,
        "range": [one.first, one.last],
        "loss": rounded(one.loss, 6),
        "weight": one.weight,
        "gradient": one.gradient,
        "layer": one.layer,
        "repeated": one.repeated,
        "period": one.period,
    }


def _highest(parts: Iterable[Part]) -> list[Part]:
    """Returns the parts with the highest losses."""
    return sorted(parts, key=lambda one: -np.nan_to_num(one.loss))[:MOST_ROWS]


def _sums(parts: Iterable[Part], key: Callable[[Part], str | None]) -> list[Document]:
    """Returns the mean loss and the weight of each group of examples, the highest loss first."""
    groups: dict[str, list[Part]] = {}
    for one in parts:
        if (name := key(one)) and one.weight:
            groups.setdefault(name, []).append(one)
    rows = [
        {
            "name": name,
            "examples": len(members),
            "weight": (weight := sum(one.weight for one in members)),
            "loss": sum(one.loss * one.weight for one in members) / weight,
        }
        for name, members in groups.items()
    ]
    return sorted(rows, key=lambda row: -row["loss"])[:MOST_ROWS]


def _texts(stretch: Stretch) -> list[bytes] | None:
    """Returns the text of each id, where the data or the run has a tokenizer of bytes."""
    own = stretch.workdir / "tokenizer.json"
    path = stretch.data.tokenizer_path or (own if own.exists() else None)
    return None if path is None else token_texts(read_tokenizer(path))


def _text(texts: list[bytes] | None, token: int) -> str:
    """Returns the text of an id, or its number where it stands for none."""
    known = texts[token] if texts is not None and token < len(texts) else b""
    return known.decode(errors="replace") if known else f"[{token}]"


def _rare(
    tokens: np.ndarray, losses: np.ndarray, around: Epoch, texts: list[bytes] | None
) -> list[Document]:
    """Returns the ids of an example that are rarest in the epoch, with their highest losses."""
    ids = np.unique(tokens)
    known = np.append(around.counts, 0)  # an id beyond those that were seen has been seen 0 times
    counts = known[np.minimum(ids, len(around.counts))]
    rarest = np.argsort(counts, kind="stable")[:RARE]
    return [
        {
            "id": int(ids[place]),
            "text": _text(texts, int(ids[place])),
            "count": int(counts[place]),
            "loss": rounded(float(losses[tokens == ids[place]].max()), 4),
        }
        for place in rarest.tolist()
    ]
