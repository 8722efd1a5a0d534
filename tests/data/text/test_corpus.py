from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.config.renames import upgraded
from jaxpretrain.config.serialize import from_dict
from jaxpretrain.data.text.corpus import Corpus, RawTokens, TextSource, data_root


@dataclass(frozen=True)
class Data:
    """A source, as the data of a run."""

    raw: RawTokens | None = None
    sources: dict[str, TextSource] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved:
    """The part of a run's config that is about data."""

    data: Data = Data()


def _find(source: TextSource) -> Corpus:
    return Corpus.find(source, flag="data", seq_len=16, vocab_size=400, verify="auto")


def test_a_prepared_corpus_has_its_manifest_and_tokenizer(prepared: Path):
    corpus = _find(TextSource(root=str(prepared)))
    assert corpus.root == prepared == data_root(corpus.source)
    assert corpus.manifest is not None and corpus.manifest.name == "tiny"
    assert corpus.tokenizer_path == prepared / "tokenizer.json"
    assert len(corpus.open_train()) > 0 and corpus.open_validation() is not None


def test_raw_files_are_read_as_raw_says(tmp_path: Path):
    ids = np.arange(400)
    ids.astype("<u4").tofile(tmp_path / "a.npy")
    with pytest.raises(InputError, match="set data.raw=raw_tokens and data.raw.dtype=uint32"):
        _find(TextSource(root=str(tmp_path))).open_train()
    files = _find(TextSource(root=str(tmp_path), raw=RawTokens("uint32"))).open_train()
    np.testing.assert_array_equal(files.read(np.array([1]))[0], ids[16:32])
    trusted = TextSource(root=str(tmp_path), raw=RawTokens("uint16", trust_dtype=True))
    np.testing.assert_array_equal(
        _find(trusted).open_train().read(np.array([1]))[0][::2], ids[8:16]
    )


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ({}, None),
        ({"dtype": "uint16", "trust_dtype": False, "label_mask": None}, None),
        ({"dtype": "uint32", "trust_dtype": False, "label_mask": None}, RawTokens("uint32")),
        (
            {"dtype": "uint16", "trust_dtype": True, "label_mask": "m"},
            RawTokens("uint16", True, "m"),
        ),
    ],
)
def test_raw_files_of_an_old_run_are_read_as_before(old: dict[str, Any], now: RawTokens | None):
    upgrade = upgraded({"data": {**old, "sources": {"web": dict(old)}}})
    data = from_dict(Saved, upgrade).data
    assert data.raw == data.sources["web"].raw == now


def test_an_upgraded_group_is_written_as_todays_is():
    saved = upgraded({"data": {"dtype": "uint32", "trust_dtype": True}})
    assert saved["data"]["raw"] == {"class": "raw_tokens", "dtype": "uint32", "trust_dtype": True}


@pytest.mark.parametrize("name", ["dtype", "trust_dtype", "label_mask"])
def test_an_old_flag_says_what_is_written_now(name: str):
    with pytest.raises(InputError, match=f"data.raw.{name}, after data.raw=raw_tokens"):
        apply_overrides(Saved(), [(f"data.{name}", "x")])
    mixed = Saved(Data(sources={"web": TextSource()}))
    with pytest.raises(InputError, match=rf"data.sources.*.raw.{name}, after"):
        apply_overrides(mixed, [(f"data.sources.web.{name}", "x")])
