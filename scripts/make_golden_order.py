"""Writes tests/golden/olmo_order.json: batches and instance filters of OLMo's own data loaders.

Runs the loaders of `ai2-olmo` and `ai2-olmo-core` on a toy dataset, with several numbers of ranks
and worker processes, over epochs and after restarts, and checks that none of these matters. The
packages pin versions of each other and of NumPy that do not fit together, and run with others:

    python3.11 -m venv olmo
    olmo/bin/pip install torch==2.13.0 numpy==2.4.6 omegaconf rich boto3 google-cloud-storage \
        cached_path requests packaging pyyaml dataclass-extensions bettermap safetensors \
        importlib_resources pandas datasets tokenizers
    olmo/bin/pip install --no-deps ai2-olmo==0.6.0 ai2-olmo-core==3.0.0
    olmo/bin/python scripts/make_golden_order.py --output=tests/golden
"""

import argparse
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import olmo_core.data as core  # pyright: ignore[reportMissingImports]
import torch  # pyright: ignore[reportMissingImports]
from olmo.data import IterableDataset, MemMapDataset  # pyright: ignore[reportMissingImports]
from olmo.data.util import find_periodic_sequences  # pyright: ignore[reportMissingImports]

SEQ_LEN = 4
# Two files have a remainder, one is too short for a sequence.
FILE_TOKENS = (41, 3, 120, 64, 203)
SEED = 6198
BATCH_SIZE = 8
NUM_EPOCHS = 3
RESTART = 5  # batches of an epoch before a restart
RANKS_AND_WORKERS = ((1, 0), (2, 0), (4, 2), (8, 1))

FILTERS = ((13, 1, 32), (4, 1, 5), (5, 2, 3), (1, 1, 7))  # max_period, min_period, max_count
ROW_LENGTH, NUM_ROWS = 96, 150


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of olmo_order.json")
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as folder:
        paths = write_files(Path(folder))
        document = {
            "seq_len": SEQ_LEN,
            "file_tokens": FILE_TOKENS,
            "seed": SEED,
            "batch_size": BATCH_SIZE,
            "olmo": agreed(olmo(paths, *how) for how in RANKS_AND_WORKERS),
            "olmo_indices": olmo_indices(paths, Path(folder)),
            "olmo_core": {
                chunk: agreed(
                    olmo_core(paths, Path(folder), chunk, *how) for how in RANKS_AND_WORKERS
                )
                for chunk in (1, 2, 4)
            },
            "filters": [verdicts(*sizes) for sizes in FILTERS],
        }
    (output / "olmo_order.json").write_text(json.dumps(document) + "\n")


def write_files(folder: Path) -> list[str]:
    """Writes ids that count up over all files, so that the first one identifies a sequence."""
    paths, first = [], 0
    for number, num_tokens in enumerate(FILE_TOKENS):
        path = folder / f"{number}.npy"
        np.arange(first, first + num_tokens, dtype=np.uint16).tofile(path)
        paths.append(str(path))
        first += num_tokens
    return paths


def agreed(results: Iterable[Any]) -> Any:
    """Returns the result that all have in common, and fails where they differ."""
    first, *others = results
    assert all(other == first for other in others)
    return first


def interleaved(ranks: Sequence[Sequence[Any]]) -> list[list[int]]:
    """Returns the first tokens of the global batches.

    Sequence j of a batch is on rank j modulo the number of ranks.
    """
    return [
        np.stack([np.asarray(batch)[:, 0] for batch in batches], axis=1).ravel().tolist()
        for batches in zip(*ranks, strict=True)
    ]


def olmo(paths: list[str], num_ranks: int, num_workers: int) -> list[list[list[int]]]:
    """Returns the batches of each epoch in the order of OLMo's trainer."""

    def read(rank: int, epoch: int, start: int) -> list[torch.Tensor]:
        dataset = IterableDataset(
            MemMapDataset(*paths, chunk_size=SEQ_LEN),
            BATCH_SIZE,
            seed=SEED,
            drop_last=True,
            world_size=num_ranks,
            rank=rank,
            fs_local_rank=0,
        )
        dataset.reshuffle(epoch)
        dataset.start_index = start * BATCH_SIZE
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=BATCH_SIZE // num_ranks, drop_last=True, num_workers=num_workers
        )
        return [batch["input_ids"] for batch in loader]

    epochs = []
    for epoch in range(NUM_EPOCHS):
        batches = interleaved([read(rank, epoch, 0) for rank in range(num_ranks)])
        rest = interleaved([read(rank, epoch, RESTART) for rank in range(num_ranks)])
        assert rest == batches[RESTART:]
        epochs.append(batches)
    return epochs


def olmo_indices(paths: list[str], folder: Path) -> dict[int, list[int]]:
    """Returns the `global_indices.npy` of the first epoch, by the number of ranks."""
    saved = {}
    for num_ranks in (1, 4):
        dataset = MemMapDataset(*paths, chunk_size=SEQ_LEN)
        IterableDataset(
            dataset,
            BATCH_SIZE,
            seed=SEED,
            drop_last=True,
            world_size=num_ranks,
            rank=0,
            fs_local_rank=0,
            work_dir=folder / f"indices{num_ranks}",
        )
        file = folder / f"indices{num_ranks}" / "global_indices.npy"
        saved[num_ranks] = np.fromfile(file, np.uint32).tolist()
    return saved


def olmo_core(
    paths: list[str], folder: Path, chunk: int, num_ranks: int, num_workers: int
) -> list[list[list[int]]]:
    """Returns the batches of each epoch in the order of OLMo-core's trainer."""

    def read(rank: int, epoch: int, start: int) -> list[torch.Tensor]:
        dataset = core.NumpyFSLDataset(
            *paths,
            sequence_length=SEQ_LEN,
            max_target_sequence_length=chunk * SEQ_LEN,
            pad_token_id=0,
            eos_token_id=0,
            vocab_size=50_280,
        )
        loader = core.NumpyDataLoaderBase.wrap_numpy_dataset(
            dataset,
            global_batch_size=BATCH_SIZE * SEQ_LEN,
            collator=core.DataCollator(pad_token_id=0),
            work_dir=folder / "core",
            seed=SEED,
            dp_world_size=num_ranks,
            dp_rank=rank,
            fs_local_rank=0,
            num_workers=num_workers,
        )
        loader.reshuffle(epoch + 1)
        loader.batches_processed = start
        return [batch["input_ids"] for batch in loader]

    epochs = []
    for epoch in range(NUM_EPOCHS):
        batches = interleaved([read(rank, epoch, 0) for rank in range(num_ranks)])
        rest = interleaved([read(rank, epoch, RESTART) for rank in range(num_ranks)])
        assert rest == batches[RESTART:]
        epochs.append(batches)
    return epochs


def verdicts(max_period: int, min_period: int, max_count: int) -> dict[str, Any]:
    """Returns the rows that OLMo's instance filter leaves out of the loss."""
    masked = [
        any(
            found.times >= max_count
            for found in find_periodic_sequences(row, max_period=max_period, min_period=min_period)
        )
        for row in rows(max_period, max_count)
    ]
    assert 0.1 < np.mean(masked) < 0.9
    return {
        "filter": {"max_period": max_period, "min_period": min_period, "max_count": max_count},
        "masked": "".join("01"[row] for row in masked),
    }


def rows(max_period: int, max_count: int) -> np.ndarray:
    """Draws sequences about as repetitive as the filter allows; tests make the same ones."""
    generator = np.random.Generator(np.random.PCG64(max_count))
    length = max(ROW_LENGTH, 2 * max_period * max_count)
    tokens = generator.integers(100, 1000, (NUM_ROWS, length))
    for row in tokens:
        period = generator.integers(1, max_period + 2)
        repeated = period * max_count + generator.integers(-2, 3)
        start = generator.integers(0, length - repeated + 1)
        row[start : start + repeated] = np.resize(row[:period], repeated)
    return tokens


if __name__ == "__main__":
    main()
