"""A small made-up corpus, as text and prepared."""

import json
import random
import unicodedata
from pathlib import Path

import pytest

from jaxpretrain.data.prepare.prepare_text import PrepareText, prepare_text

WORDS = ["the", "union", "of", "states", "1862", "naïve", "Übermaß", "漢字", "🙂", "don't"]
WORDS += ["\t", "", "\n\n", "x=y;"]


def _texts(num_documents: int) -> list[str]:
    """Documents with several scripts, in composed and decomposed Unicode, none equal."""
    random_ = random.Random(0)
    texts = []
    for number in range(num_documents):
        words = random_.choices(WORDS, k=random_.randrange(5, 120))
        text = f"{number}. " + " ".join(words)
        texts.append(unicodedata.normalize("NFD", text) if number % 3 == 0 else text)
    return texts


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [*_texts(200), "this <|endoftext|> is text, and not the end"]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """A `.jsonl` file of the texts."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts)))
    return path


@pytest.fixture(scope="session")
def spec(corpus: Path) -> PrepareText:
    """How the corpus is prepared: several parts, a tokenizer of 400 ids."""
    return PrepareText(
        files=(str(corpus),), validation_fraction=0.2, vocab_size=400, name="tiny", part_tokens=3000
    )


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, spec: PrepareText) -> Path:
    """The prepared corpus. Tests that change it copy it first."""
    output = tmp_path_factory.mktemp("prepared") / "tiny"
    prepare_text(spec, output, workers=1)
    return output


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of this test alone."""
    monkeypatch.setenv("JAXPRETRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
