"""Perplexity of named sets of token files: exact, and as OLMo averages it.

A file holds raw token ids and is read in windows of the context, which do not overlap; nothing is
predicted from before its window. The exact loss weighs every predicted token alike and takes in
the shorter window at the end of each file. OLMo's leaves that one out and averages the means of
the others.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.token_files.token_sample import TypeFlags
from jaxpretrain.data.token_files.tokens import open_raw
from jaxpretrain.diagnosis.metric_names import perplexity
from jaxpretrain.evals.scoring.encode import Request
from jaxpretrain.evals.scoring.nats import bits_per_byte
from jaxpretrain.evals.scoring.scorer import Scorer


class Perplexity:
    """An evaluation of named sets.

    Args:
      scorer: of the model that is evaluated.
      sets: name -> files of raw token ids.
      dtype: of the ids in the files.
      trust_dtype: whether they are read as such even where they look like another type.
      token_bytes: UTF-8 bytes that each id stands for, [v]; None: unknown.

    Raises:
      InputError: a file is missing, holds no window, ids of another type, or an id outside the
        vocabulary.
    """

    def __init__(
        self,
        scorer: Scorer,
        sets: Mapping[str, Sequence[Path]],
        *,
        dtype: Literal["uint16", "uint32"],
        trust_dtype: bool = False,
        token_bytes: np.ndarray | None,
    ) -> None:
        self._scorer = scorer
        self._token_bytes = token_bytes
        size = scorer.vocab_size
        if token_bytes is not None:
            size = min(size, len(token_bytes))
        length = scorer.context_length
        self._sets = {
            name: _windows(paths, dtype, trust_dtype, length, size) for name, paths in sets.items()
        }
        ids = [window.tolist() for windows in self._sets.values() for window in windows]
        self._packed = scorer.prepare([Request(window[:1], window[1:]) for window in ids])

    def __call__(self, params: Any) -> dict[str, dict[str, float | None]]:
        """Set -> its exact `loss` (nats), `perplexity`, `bits_per_byte` (None: bytes unknown),
        `num_tokens` that were predicted, and OLMo's `olmo_loss` and `olmo_perplexity` (None: no
        file has a whole window).
        """
        nats = iter(-self._scorer(params, self._packed).log_likelihoods)
        return {
            name: self._metrics(windows, np.array([next(nats) for _ in windows]))
            for name, windows in self._sets.items()
        }

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
            "num_tokens": int(num_tokens.sum()),
            "olmo_loss": olmo_loss,
            "olmo_perplexity": None if olmo_loss is None else perplexity(olmo_loss),
        }


def _windows(
    paths: Sequence[Path],
    dtype: Literal["uint16", "uint32"],
    trust_dtype: bool,
    length: int,
    vocab_size: int,
) -> list[np.ndarray]:
    """Token ids of each window of at least two tokens, in order."""
    files = open_raw(
        Path(),
        paths,
        dtype=dtype,
        seq_len=length,
        vocab_size=vocab_size,
        flags=None if trust_dtype else TypeFlags("--token_dtype", "--trust_token_dtype"),
    )
    for line in files.notes:
        print(line, file=sys.stderr)
    windows = []
    for file in files.files:
        tokens = np.fromfile(file.path, np.dtype(dtype).newbyteorder("<"))
        if len(tokens) and int(tokens.max()) >= vocab_size:
            raise InputError(
                f"{file.path}: token {int(tokens.argmax())} is {tokens.max()}, outside the "
                f"vocabulary of {vocab_size}; the file is of another tokenizer or not of {dtype}"
            )
        windows += [tokens[i : i + length] for i in range(0, len(tokens) - 1, length)]
    if not windows:
        raise InputError(f"{', '.join(map(str, paths))}: no tokens to predict")
    return windows
