"""Perplexity of named sets of token files: exact, and as OLMo averages it.

A file holds raw token ids and is read in windows of the context, which do not overlap; nothing is
predicted from before its window. The exact loss weighs every predicted token alike and takes in
the shorter window at the end of each file. OLMo's leaves that one out and averages the means of
the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.paths import PlaceText
from jaxpretrain.data.token_files.tokenizer import read_tokenizer, token_bytes
from jaxpretrain.data.token_files.tokens import open_raw
from jaxpretrain.diagnosis.metric_names import bits_per_byte, perplexity
from jaxpretrain.display.wording import format_table
from jaxpretrain.evals.contract import Evaluation, Evaluator, Items, Results, Setting
from jaxpretrain.evals.scoring.encode import Request
from jaxpretrain.evals.scoring.scorer import Scorer
from jaxpretrain.models.contract import Params
from jaxpretrain.storage.copies import local_copy
from jaxpretrain.storage.paths import parse

_NUM_TOKENS = "num_tokens"
_COLUMNS = ("loss", "perplexity", "bits_per_byte", _NUM_TOKENS, "olmo_loss")


@dataclass(frozen=True)
class Perplexity(Evaluation):
    """Perplexity of sets of raw token files at each evaluation."""

    sets: dict[str, tuple[PlaceText, ...]] = field(default_factory=dict)
    """Files of token ids of each set, by the name that its results go by."""
    dtype: Literal["uint16", "uint32"] | None = None
    """Type of the ids; none: the smallest that holds the model's vocabulary, as in OLMo's files."""
    trust_dtype: bool = False
    """Reads the files as that type even where their ids look like another one."""

    def build(self, setting: Setting) -> "FilePerplexity":
        """Returns the evaluator; there must be a set, and its files must fit the model."""
        if not self.sets:
            raise InputError(
                "eval.perplexity.sets is empty: write --config.eval.perplexity.sets.NAME=FILE.npy"
            )
        setting.require_other_names(set(self.sets), "eval.perplexity.sets")
        tokenizer = setting.task_tokenizer
        bytes_v = None if tokenizer is None else token_bytes(read_tokenizer(tokenizer))
        return FilePerplexity(setting.scorer, self, token_bytes=bytes_v)


class FilePerplexity(Evaluator):
    """Measures the perplexity of named sets.

    `token_bytes` are the UTF-8 bytes that each id stands for, [v], where they are known. Raises
    InputError for a file that is missing, holds no window, or has ids of another type or outside
    the vocabulary.
    """

    def __init__(
        self, scorer: Scorer, config: Perplexity, *, token_bytes: np.ndarray | None
    ) -> None:
        self._scorer = scorer
        self._token_bytes = token_bytes
        self._notes: list[str] = []
        self._sets = {
            name: self._windows([local_copy(parse(path)) for path in paths], config)
            for name, paths in config.sets.items()
        }
        ids = [window.tolist() for windows in self._sets.values() for window in windows]
        self._packed = scorer.plan([Request(window[:1], window[1:]) for window in ids])

    def notes(self) -> list[str]:
        """Returns lines about the content of the files."""
        return self._notes

    def compile(self) -> None:
        """Compiles a program for each shape of batches."""
        self._scorer.compile(self._packed)

    def __call__(self, params: Params) -> Results:
        """Returns metrics of each set: its exact `loss` (nats), `perplexity`, `bits_per_byte`
        (None: bytes unknown), and OLMo's `olmo_loss` and `olmo_perplexity` (None: no file has a
        whole window). The details have `num_tokens` too, the tokens that were predicted.
        """
        nats = iter(-self._scorer(params, self._packed).log_likelihoods)
        metrics = {
            name: self._metrics(windows, np.array([next(nats) for _ in windows]))
            for name, windows in self._sets.items()
        }
        scalars = {
            f"eval/{name}/{metric}": value
            for name, found in metrics.items()
            for metric, value in found.items()
            if metric != _NUM_TOKENS
        }
        rows = [(name, *map(found.get, _COLUMNS)) for name, found in metrics.items()]
        items = Items({"perplexity": metrics}, [*format_table([("set", *_COLUMNS), *rows])])
        return Results(scalars=scalars, items=items)

    def _metrics(self, windows: Sequence[np.ndarray], nats: np.ndarray) -> dict[str, float | None]:
        num_tokens = np.array([len(window) - 1 for window in windows])
        loss = float(nats.sum() / num_tokens.sum())
        num_bytes = 0
        if self._token_bytes is not None:
            num_bytes = sum(int(self._token_bytes[window[1:]].sum()) for window in windows)
        whole = num_tokens == self._scorer.context_length - 1
        olmo_loss = float((nats[whole] / num_tokens[whole]).mean()) if whole.any() else None
        return {
            "loss": loss,
            "perplexity": perplexity(loss),
            "bits_per_byte": bits_per_byte(float(nats.sum()), num_bytes),
            _NUM_TOKENS: int(num_tokens.sum()),
            "olmo_loss": olmo_loss,
            "olmo_perplexity": None if olmo_loss is None else perplexity(olmo_loss),
        }

    def _windows(self, paths: Sequence[Path], config: Perplexity) -> list[np.ndarray]:
        """Returns token ids of each window of at least two tokens, in order."""
        length, vocab_size = self._scorer.context_length, self._scorer.vocab_size
        dtype = config.dtype or ("uint16" if vocab_size <= 2**16 else "uint32")
        if self._token_bytes is not None:
            vocab_size = min(vocab_size, len(self._token_bytes))
        files = open_raw(
            Path(),
            paths,
            dtype=dtype,
            seq_len=length,
            vocab_size=vocab_size,
            flag=None if config.trust_dtype else "eval.perplexity",
        )
        self._notes += files.notes
        windows = []
        for file in files.files:
            tokens = np.fromfile(file.path, np.dtype(dtype).newbyteorder("<"))
            if len(tokens) and int(tokens.max()) >= vocab_size:
                raise InputError(
                    f"{file.path}: token {int(tokens.argmax())} is {tokens.max()}, outside the "
                    f"vocabulary of {vocab_size}; the file is of another tokenizer or not of "
                    f"{dtype}"
                )
            windows += [tokens[i : i + length] for i in range(0, len(tokens) - 1, length)]
        if not windows:
            raise InputError(f"{', '.join(map(str, paths))}: no tokens to predict")
        return windows
