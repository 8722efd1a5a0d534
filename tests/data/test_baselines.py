import gzip
import json
import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.token_files.manifest import load_manifest


@pytest.fixture(scope="module")
def baselines() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "baselines.py"))


def test_probabilities_of_all_continuations_sum_to_one(baselines: dict[str, Any]):
    """After a context that occurred, one that did so once, and one that never did."""
    vocab_size = 7
    train = np.array([0, 1, 2, 0, 1, 3, 0, 2, 2, 4])
    for context in range(vocab_size):
        held_out = np.stack([np.full(vocab_size, context), np.arange(vocab_size)], 1)
        for name in ("uniform", "unigram", "bigram"):
            nats = [baselines["ngram_nats"](train, pair, vocab_size)[name][0] for pair in held_out]
            assert np.exp(-np.array(nats)).sum() == pytest.approx(1)


def test_witten_bell_by_hand(baselines: dict[str, Any]):
    """Train 0 1 0 1 0 2 of 4 ids: after 0 come 1, 1, 2; types T = 3 of N = 6 tokens."""
    nats = baselines["ngram_nats"](np.array([0, 1, 0, 1, 0, 2]), np.array([0, 1, 3]), 4)
    one, three = (2 + 3 / 4) / (6 + 3), (0 + 3 / 4) / (6 + 3)
    after_0, after_1 = (2 + 2 * one) / (3 + 2), (0 + 1 * three) / (2 + 1)
    np.testing.assert_allclose(nats["uniform"], [math.log(4)] * 2)
    np.testing.assert_allclose(nats["unigram"], -np.log([one, three]))
    np.testing.assert_allclose(nats["bigram"], -np.log([after_0, after_1]))


def test_the_rows_are_measured_on_the_text(
    baselines: dict[str, Any], prepared: Path, capsys: pytest.CaptureFixture[str]
):
    from tokenizers import Tokenizer

    baselines["main"]([f"--data={prepared}", "--json"])
    summary = json.loads(capsys.readouterr().out)
    assert summary["num_tokens"] == load_manifest(prepared).splits["validation"].num_tokens
    rows = {row["name"].partition(",")[0]: row for row in reversed(summary["rows"])}
    assert list(rows)[::-1] == ["uniform", "unigram", "bigram", "gzip -9", "xz -9e"]
    nats = rows["bigram"]["nats_per_token"] * (summary["num_tokens"] - 1)
    bits = rows["bigram"]["bits_per_byte"] * summary["num_bytes"]
    assert bits == pytest.approx(nats / math.log(2))
    tokenizer = Tokenizer.from_file(str(prepared / "tokenizer.json"))
    ids = np.concatenate([np.fromfile(p, "<u2") for p in sorted(prepared.glob("validation/*.npy"))])
    text = tokenizer.decode(ids.tolist()).encode()
    expected = 8 * len(gzip.compress(text, 9)) / len(text)
    assert rows["gzip -9"]["bits_per_byte"] == pytest.approx(expected)


def test_without_data_or_run_it_says_what_to_give(baselines: dict[str, Any]):
    with pytest.raises(InputError, match="give --data=DIR"):
        baselines["main"]([])
