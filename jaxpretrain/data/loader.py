"""Readers of batches ahead of the step that consumes them; Grain does it.

Its import costs 0.3 s once JAX is there (0.8 s without). One thread keeps order and is enough: on
one core, which it shares with its consumer, it delivers 140 to 390 million tokens a second by order
and mixture, three quarters or more of what reading alone does (docs/data.md has the table). Images
have to be decoded, which takes processes.
"""

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from jaxpretrain.data.contract import Batch

if TYPE_CHECKING:
    import grain

PART_ROWS = 16
"""The number of rows that a process reads at a time: whole batches would take much memory."""
_BATCHES_AHEAD = 2
"""The number of batches that lie ready where processes read."""


class Batches(AbstractContextManager, Iterator[Batch]):
    """The batches of one of Grain's prefetching iterators.

    An exception in reading is raised at the batch it belongs to. `close` (or leaving a `with`)
    drops the batches that lie ready, and ends the threads, after the read they are in, and the
    processes.
    """

    def __init__(self, batches: "grain.DatasetIterator[Batch]"):
        batches.start_prefetch()
        self._batches: grain.DatasetIterator[Batch] | None = batches

    def __next__(self) -> Batch:
        if self._batches is None:
            raise StopIteration
        return next(self._batches)

    def close(self) -> None:
        """Ends the iteration; may be called at any time, and twice."""
        if self._batches is None:
            return
        self._batches.close()
        self._batches = None
        # Grain's exhausted iterators are in cycles with the last arrays. At the interpreter's exit
        # they would be reported as leaked, and complain about missing modules.
        gc.collect()

    def __exit__(self, *exception: object) -> None:
        self.close()


def load_batches(
    read: Callable[[int], Batch], first: int, last: int, *, prefetch: int = 8
) -> Batches:
    """Returns `read(step)` for steps first, ..., last - 1, read ahead by one background thread.

    Up to `prefetch` batches lie ready, at least 1.
    """
    grain = _import_grain()
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)
    return Batches(iter(grain.MapDataset.range(first, last).map(read).to_iter_dataset(options)))


def load_in_workers(
    read: Callable[[np.ndarray], Batch],
    samples: Callable[[int], np.ndarray],
    first: int,
    last: int,
    *,
    num_workers: int,
) -> Batches:
    """Returns `read(samples(step))` for steps first, ..., last - 1, read ahead by processes.

    Batches are the same, bit for bit, as those of a thread. Both functions are pickled; the second
    gives the sample numbers of a step, int64 [n]. The processes are spawned: they import the main
    module again, so a script needs its `if __name__ == "__main__"`. They never touch a device.
    """
    grain = _import_grain()
    workers = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=2)
    num_parts = max(1, -(-len(samples(last - 1)) // PART_ROWS))
    parts = (
        grain.MapDataset.range(first * num_parts, last * num_parts)
        .map(partial(_read_part, read, samples, num_parts))
        .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        .mp_prefetch(workers, _start_worker)
    )
    batches = parts.batch(num_parts, batch_fn=_join)
    ahead = grain.experimental.ThreadPrefetchIterDataset
    return Batches(iter(ahead(batches, prefetch_buffer_size=_BATCHES_AHEAD)))


def _import_grain():
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain reads flags, which only absl's own start parses
        flags.FLAGS.mark_as_parsed()
    return grain


def _read_part(
    read: Callable[[np.ndarray], Batch],
    samples: Callable[[int], np.ndarray],
    num_parts: int,
    index: int,
) -> Batch:
    step, part = divmod(index, num_parts)
    return read(np.array_split(samples(step), num_parts)[part])


def _join(parts: Sequence[Batch]) -> Batch:
    """Returns a batch of the parts, copied out of the memory that the processes share."""
    return {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}


def _start_worker(index: int, num_workers: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach the whole group; the parent still needs its batches
    # while it saves.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """Ends this process when its parent ends: one that is killed tells its processes nothing."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait_and_exit() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_and_exit, daemon=True).start()
