"""Documents to tokens, in parallel processes and in order: each document is encoded alone."""

import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.loader import end_with_parent
from jaxpretrain.data.prepare.documents import Document
from jaxpretrain.data.token_files.tokenizer import encoder, read_tokenizer, token_bytes

_Result = tuple[np.ndarray, bool]

Encoded = tuple[Document, np.ndarray, bool]
"""A document, its token ids without the EOS, uint32 [num_tokens], and true where the bytes of the
tokens add up to those of the normalised text."""

BATCH_BYTES = 2**20
"""The size of the texts that are sent to a process at a time: enough to make the sending cheap."""


def encode(documents: Iterable[Document], tokenizer: Path, workers: int) -> Iterator[Encoded]:
    """Yields the documents with their tokens, in order.

    One worker means this process, where the tokenizers package uses threads of its own.
    """
    for batch, results in _encode_batches(_batches(documents), tokenizer, workers):
        for document, (tokens, byte_exact) in zip(batch, results, strict=True):
            yield document, tokens, byte_exact


def _encode_batches(
    batches: Iterator[list[Document]], tokenizer: Path, workers: int
) -> Iterator[tuple[list[Document], list[_Result]]]:
    if workers <= 1:
        for batch in batches:
            yield batch, _encode_texts(tokenizer, [document.text for document in batch])
        return
    # Spawned, because a forked copy of a process with threads (JAX has them) may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker)
    waiting: deque[tuple[list[Document], Future[list[_Result]]]] = deque()
    try:
        for batch in batches:
            texts = [document.text for document in batch]
            waiting.append((batch, pool.submit(_encode_texts, tokenizer, texts)))
            if len(waiting) > 2 * workers:  # bounds the memory, and keeps everyone busy
                batch, future = waiting.popleft()
                yield batch, future.result()
        while waiting:
            batch, future = waiting.popleft()
            yield batch, future.result()
    except BrokenProcessPool:
        raise InputError(
            "a tokenizing process died, perhaps for lack of memory; run again with fewer"
            " workers: finished parts are kept"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document.content)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _start_worker() -> None:
    # Before the package is imported: one process a core is parallel enough.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    end_with_parent()


def _encode_texts(tokenizer: Path, texts: list[str]) -> list[_Result]:
    encode_batch, normalize, sizes = _loaded(tokenizer)
    results = []
    encodings = encode_batch(texts, add_special_tokens=False)
    for text, encoding in zip(texts, encodings, strict=True):
        tokens = np.array(encoding.ids, np.uint32)
        num_bytes = len(normalize(text).encode())
        results.append((tokens, sizes is not None and int(sizes[tokens].sum()) == num_bytes))
    return results


@cache
def _loaded(path: Path):
    """Returns the parts of a tokenizer, which is read once in each process."""
    text = read_tokenizer(path)
    tokenizer = encoder(text, path)
    normalizer = tokenizer.normalizer
    normalize = normalizer.normalize_str if normalizer else str
    return tokenizer.encode_batch_fast, normalize, token_bytes(text)
