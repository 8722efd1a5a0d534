import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from jaxpretrain.data.text.mixture import Mixture, MixtureSource
from jaxpretrain.data.text.text import TextData
from jaxpretrain.data.token_files.masks import InstanceFilter
from jaxpretrain.inspection.batches import documents, read_rows

EOS, ROW_LEN = 0, 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files; ids count up, with an end of a document at every multiple of ten."""
    for number, size in enumerate((20, 26)):
        ids = np.arange(100 * number, 100 * number + size)
        np.where(ids % 10, ids, EOS).astype("<u2").tofile(tmp_path / f"{number}.npy")
    return tmp_path


def _show(data, samples: list[int], decode=None, eos_id: int | None = EOS) -> list:
    return read_rows(data, np.array(samples), eos_id=eos_id, decode=decode)


def test_rows_say_where_the_tokens_of_the_batch_are(folder: Path):
    data = TextData(root=str(folder), seq_len=ROW_LEN).open(seed=1, limits={"tokens": 1000})
    samples = [0, 9, 5, 3]
    batch = data.batch(np.array(samples))["tokens"]
    rows = _show(data, samples, decode=lambda ids: str(ids[:3]))
    for row, tokens, sample in zip(rows, batch, samples, strict=True):
        ids = np.fromfile(folder / row.file, "<u2")
        np.testing.assert_array_equal(ids[slice(*row.tokens)], tokens)
        assert (row.sample, row.epoch) == (sample, sample // 7)
        assert row.text == str(tokens[:3].tolist())
        assert (row.source, row.num_masked) == (None, 0)
    assert json.loads(json.dumps(asdict(rows[0])))["file"] == rows[0].file


def test_what_is_not_known_is_none(folder: Path):
    data = TextData(root=str(folder), seq_len=ROW_LEN).open(seed=1, limits={"tokens": 1000})
    (row,) = _show(data, [0], eos_id=None)
    assert (row.documents, row.text) == (None, None)


def test_documents_end_with_their_eos():
    tokens = np.array([5, 0, 6, 7, 0, 8])
    assert documents(tokens, 0) == [(0, 2), (2, 5), (5, 6)]
    assert documents(tokens[:5], 0) == [(0, 2), (2, 5)]
    assert documents(np.array([0, 0, 1]), 0) == [(0, 1), (1, 2), (2, 3)]
    assert documents(np.array([1, 2]), 0) == [(0, 2)]


def test_rows_of_a_mixture_name_their_source_and_its_epoch(folder: Path, tmp_path: Path):
    sources = {"x": MixtureSource(root=str(folder)), "y": MixtureSource(root=str(folder))}
    config = Mixture(sources, seq_len=ROW_LEN, window=2, instance_filter=InstanceFilter(1, 1, 3))
    data = config.open(seed=0, limits={"tokens": 1000})
    samples = list(range(40))
    batch = data.batch(np.array(samples))
    for row, tokens, source in zip(
        _show(data, samples), batch["tokens"], batch["source"], strict=True
    ):
        assert row.source == "xy"[source]
        np.testing.assert_array_equal(
            np.fromfile(folder / row.file, "<u2")[slice(*row.tokens)], tokens
        )
        assert row.epoch == row.sample // 2 // 7


def test_rows_count_what_is_left_out_of_the_loss(tmp_path: Path):
    np.array([1, 1, 1, 1, 1, 1, 1, 2, 3, 4, 5, 6]).astype("<u2").tofile(tmp_path / "0.npy")
    config = TextData(root=str(tmp_path), seq_len=ROW_LEN, instance_filter=InstanceFilter(1, 1, 4))
    rows = _show(config.open(seed=0, limits={"tokens": 10}), [0, 1])
    assert {row.example: row.num_masked for row in rows} == {0: ROW_LEN, 1: 0}
