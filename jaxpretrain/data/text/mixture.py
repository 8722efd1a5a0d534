"""Several corpora in stated proportions, which may change during the run.

Each source keeps its own global order, seeded by the run's seed and its name, and is read in it
without a gap, whatever the proportions. Adding a source or changing weights reshuffles none.
"""

import bisect
import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated

import numpy as np

from jaxpretrain.config.durations import Examples
from jaxpretrain.config.errors import InputError, nearest
from jaxpretrain.config.ranges import Between, NonNegative
from jaxpretrain.config.schema import Mark
from jaxpretrain.data.contract import Batch, Spec, fingerprint
from jaxpretrain.data.order.order import OlmoOrder
from jaxpretrain.data.text import text
from jaxpretrain.data.text.corpus import Corpus, TextSource
from jaxpretrain.data.text.mixing import Blend, quotas

MAX_WINDOW = 100_000
"""The largest window: laying it out takes a second."""


@dataclass(frozen=True)
class MixtureSource(TextSource):
    """One of the corpora of a mixture."""

    weight: Annotated[float, NonNegative, Mark.SAME_SCORES] = 1.0
    """Share of the sequences, relative to the other weights; 0: none, until a later stage."""


@dataclass(frozen=True)
class MixtureStage:
    """New weights from some point of the run on."""

    at: Examples = 0
    """Beginning of the stage: "5000 steps", "1e9 tokens"; a bare number counts examples."""
    weights: dict[str, Annotated[float, NonNegative]] = field(default_factory=dict)
    """Weight of every source, by name."""


@dataclass(frozen=True)
class Mixture(text.TextConfig):
    """Sequences of text tokens from several sources, mixed by weight."""

    sources: dict[str, MixtureSource] = field(default_factory=dict)
    """The sources by name. Evaluation sets and losses of a source carry its name."""
    stages: Annotated[tuple[MixtureStage, ...], Mark.SAME_SCORES] = ()
    """Changes of the weights, in the order of the run."""
    tokenizer_of: str | None = None
    """Name of the source whose tokenizer the others take where they are prepared with `bpe`."""
    window: Annotated[int, Between(1, MAX_WINDOW), Mark.SAME_SCORES] = 1000
    """Number of samples over which proportions are exact: multiples of 1 / window."""

    def extra_spec(self) -> Spec:
        """Returns the number of the source, and the mask of the loss where there is one."""
        return {"source": ((), "int32")} | super().extra_spec()

    def text_sources(self) -> list[TextSource]:
        """Returns the corpora that are mixed."""
        return list(self.sources.values())

    def source_names(self) -> tuple[str, ...]:
        """Returns the names of all sources."""
        return tuple(self.sources)

    @property
    def changes_over_time(self) -> bool:
        """True where the weights change during the run."""
        return bool(self.stages)

    def open(self, *, seed: int, limits: Mapping[str, int]) -> "TrainingMixture":
        """Opens and checks the training split of each source."""
        if isinstance(self.order, OlmoOrder) and self.order.global_indices:
            raise InputError(
                "data.order.global_indices lists the examples of one corpus, and a mixture has"
                " several; set data.order.global_indices=none"
            )
        stages = self._stages()
        parts = {
            name: text.open_training(corpus, self.order, _seed_of(name, seed), self.instance_filter)
            for name, corpus in self._find(limits).items()
        }
        blend = Blend([(first, self._quotas(weights)) for first, weights in stages])
        sizes = np.array([part.num_examples for part in parts.values()])
        num_examples = _first_epoch(blend, sizes)
        self.check_num_examples(num_examples, "sequences", "the mixture")
        names = [(name, part.fingerprint) for name, part in parts.items()]
        # The parts with a tokenizer all have the same one.
        known = max(parts.values(), key=lambda part: part.tokenizer_path is not None)
        return TrainingMixture(
            parts=parts,
            blend=blend,
            stages=tuple(stages),
            window=self.window,
            num_examples=num_examples,
            fingerprint=fingerprint([names, blend.proportions()]),
            notes=tuple(line for part in parts.values() for line in part.notes),
            tokenizer_path=known.tokenizer_path,
            eos_id=known.eos_id,
        )

    def proportions(self, num_samples: int) -> list[tuple[int, dict[str, int]]]:
        """Returns (first sample, source -> quota in lowest terms) of the stages before a sample."""
        found = []
        for first, weights in self._stages():
            counts = self._quotas(weights)
            shares = zip(weights, (counts // np.gcd.reduce(counts)).tolist(), strict=True)
            if first < num_samples:
                found.append((first, {name: count for name, count in shares if count}))
        return found

    def after(self, before: "Mixture", num_samples: int) -> "Mixture":
        """Returns this mixture from sample `num_samples` on, with `before` until then."""
        *_, current = (weights for first, weights in self._stages() if first <= num_samples)
        stages = [(first, weights) for first, weights in before._stages() if first < num_samples]
        stages.append((num_samples, current))
        stages += [stage for stage in self._stages() if stage[0] > num_samples]
        filled = [(at, {name: x.get(name, 0.0) for name in self.sources}) for at, x in stages]
        (_, own), *later = filled
        sources = {name: replace(source, weight=own[name]) for name, source in self.sources.items()}
        changes = tuple(MixtureStage(at, weights) for at, weights in later)
        return replace(self, sources=sources, stages=changes, window=before.window)

    def open_evals(self, *, limits: Mapping[str, int]) -> list[text.EvalText]:
        """Opens the validation splits of the sources, each under the name of its source."""
        corpora = self._find(limits).items()
        return [
            held_out for name, corpus in corpora for held_out in text.open_held_out(corpus, name)
        ]

    def _stages(self) -> list[tuple[int, dict[str, float]]]:
        """Returns (first sample, source -> weight) of each stage, from sample 0 on, checked."""
        if not self.sources:
            raise InputError("data.sources is empty: a mixture needs at least one source")
        for name in self.sources:
            if not re.fullmatch(r"[\w-]+", name):
                raise InputError(
                    f"data.sources: {name!r} is no name for a source; use letters, digits, _ and -"
                )
        own = {name: source.weight for name, source in self.sources.items()}
        stages = [(0, own)]
        _check_weights(own, "data.sources")
        for number, stage in enumerate(self.stages):
            here, before = f"data.stages.{number}", stages[-1][0]
            if not isinstance(stage.at, int):
                raise TypeError(f"{here}.at is {stage.at!r}: the experiment is not resolved")
            if stage.at <= before:
                raise InputError(
                    f"{here}.at: begins with sample {stage.at:,}, not after the stage before it,"
                    f" which begins with sample {before:,}"
                )
            for name in stage.weights:
                if name not in own:
                    hint = nearest(name, own)
                    raise InputError(f"{here}.weights.{name}: no such source.{hint}")
            for name in own:
                if name not in stage.weights:
                    raise InputError(f"{here}.weights: names no weight for {name}; 0 leaves it out")
            _check_weights(stage.weights, here)
            stages.append((stage.at, {name: stage.weights[name] for name in own}))
        for name in own:
            if not any(weights[name] for _, weights in stages):
                raise InputError(f"data.sources.{name}.weight is 0, and no stage changes that")
        return stages

    def _quotas(self, weights: Mapping[str, float]) -> np.ndarray:
        """Returns the samples of each source in a window; a weight that gives none is an error."""
        counts = quotas(list(weights.values()), self.window)
        for (name, weight), count in zip(weights.items(), counts, strict=True):
            if weight and not count:
                enough = math.ceil(math.fsum(weights.values()) / weight)
                raise InputError(
                    f"data.window is {self.window}, too small for one sample of {name}, whose"
                    f" share is {1 / enough:.2g}; set data.window to at least {enough}"
                )
        return counts

    def _find(self, limits: Mapping[str, int]) -> dict[str, Corpus]:
        """Finds the corpus of each source, prepared first if need be; all with one tokenizer."""
        giver, found = self.tokenizer_of, {}
        if giver is not None and giver not in self.sources:
            hint = nearest(giver, self.sources)
            raise InputError(f"data.tokenizer_of is {giver!r}, no source.{hint}")
        for name in sorted(self.sources, key=lambda name: name != giver):  # the giver first
            source, prepare = self.sources[name], self.sources[name].prepare
            if giver in found and prepare is not None and prepare.tokenizer == "bpe":
                tokenizer = str(found[giver].tokenizer_path)
                source = replace(source, prepare=replace(prepare, tokenizer=tokenizer))
            found[name] = self.find_corpus(source, f"data.sources.{name}", limits)
            if name == giver and found[name].tokenizer_path is None:
                raise InputError(
                    f"data.tokenizer_of: {giver} is a directory of raw files, without a tokenizer"
                )
        _check_tokenizers(found)
        return {name: found[name] for name in self.sources}


@dataclass(frozen=True, kw_only=True)
class TrainingMixture(text.TrainingSequences):
    """The training splits of all sources, mixed. An epoch ends where a source would repeat."""

    parts: dict[str, text.TrainingText]
    blend: Blend
    stages: tuple[tuple[int, dict[str, float]], ...]
    """(first sample, source -> weight)."""
    window: int
    """The number of samples over which proportions are exact."""

    def batch(self, samples: np.ndarray) -> Batch:
        """Returns {"tokens": int32 [n, seq_len], "source": int32 [n]} of the samples, int64 [n].

        With a filter, or label masks in any source, also {"mask": bool [n, seq_len]}.
        """
        sources, numbers = self.blend(samples)
        parts = self.parts.values()
        batch = text.empty_batch(len(samples), next(iter(parts)).files.seq_len, parts)
        for source, part in enumerate(parts):
            rows = np.flatnonzero(sources == source)
            part.fill(batch, rows, numbers[rows])
        return batch | {"source": sources}

    def locate(self, samples: np.ndarray) -> list[text.SequencePlace]:
        """Returns the places that the samples, int64 [n], come from."""
        names, rows = list(self.parts), []
        for sample, source, number in zip(samples.tolist(), *self.blend(samples), strict=True):
            (row,) = self.parts[names[source]].locate(np.array([number]))
            rows.append(replace(row, sample=sample, source=names[source]))
        return rows

    def find(self, example: int, num_samples: int, source: str | None = None) -> Iterator[int]:
        """Yields the samples among the first `num_samples` that are this example of a source."""
        names = list(self.parts)
        if source not in names:
            hint = "" if source is None else nearest(source, names)
            raise InputError(
                f"an example of a mixture is SOURCE:INDEX, of {', '.join(names)}; there is no"
                f" source {source!r}.{hint}"
            )
        index = names.index(source)
        count = int(self.blend.counts(num_samples)[index])
        for number in self.parts[source].find(example, count):
            sample = self.blend.find(index, number, num_samples)
            if sample is not None:
                yield sample

    def epochs(self, num_samples: int) -> dict[str, float]:
        """Returns `SOURCE/epochs`: the epochs of each source in the first `num_samples` samples."""
        found = zip(self.parts.items(), self.blend.counts(num_samples), strict=True)
        return {f"{name}/epochs": float(count / part.num_examples) for (name, part), count in found}

    def describe(self) -> str:
        """Returns the proportions, their changes, and a description of each source."""
        (_, first), *later = [(start, _shares(weights)) for start, weights in self.stages]
        changes = "".join(f"; from sample {start:,}: {shares}" for start, shares in later)
        parts = "; ".join(f"{name} = {part.describe()}" for name, part in self.parts.items())
        return (
            f"mixture of {first}{changes}; exact in every {self.window:,} samples, a source repeats"
            f" after {self.num_examples:,}; {parts}"
        )


def _first_epoch(blend: Blend, sizes: np.ndarray) -> int:
    """Returns the samples before a source of these sizes repeats."""

    def repeats(num_samples: int) -> bool:
        return bool((blend.counts(num_samples) > sizes).any())

    return bisect.bisect_left(range(int(sizes.sum()) + 1), True, key=repeats) - 1


def _seed_of(name: str, seed: int) -> int:
    """Returns the seed of a source's own order, far from those of other sources and seeds."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


def _check_tokenizers(corpora: Mapping[str, Corpus]) -> None:
    known = {
        name: (corpus.manifest.tokenizer.sha256, corpus.manifest.eos_id)
        for name, corpus in corpora.items()
        if corpus.manifest
    }
    for name, tokenizer in known.items():
        first = next(iter(known))
        if tokenizer != known[first]:
            raise InputError(
                f"the sources {first} and {name} have different tokenizers or EOS tokens; prepare"
                f" one with the tokenizer.json of the other, or set data.tokenizer_of={first}"
            )


def _check_weights(weights: Mapping[str, float], place: str) -> None:
    if not any(weights.values()):
        raise InputError(f"{place}: all weights are 0; a mixture needs one that is not")


def _shares(weights: Mapping[str, float]) -> str:
    total = math.fsum(weights.values())
    return ", ".join(f"{name} {weight / total:.4g}" for name, weight in weights.items())
