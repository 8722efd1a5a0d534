import subprocess
import sys

import pytest

from jaxpretrain.data.prepare.documents import TfdsDocuments

sotu_text = pytest.importorskip("jaxpretrain.data.builders.sotu_text")


@pytest.fixture(scope="module")
def documents() -> TfdsDocuments:
    return TfdsDocuments("sotu_text", None, "text", 0.05, download=False)


def test_it_holds_the_whole_corpus_in_order(documents: TfdsDocuments):
    by_split = {split: [d for d in documents if d.split == split] for split in documents.splits}
    assert {split: len(found) for split, found in by_split.items()} == {
        "train": 237,
        "validation": 12,
    }
    assert (
        sum(len(document.content) for found in by_split.values() for document in found)
        == 12_185_751
    )
    assert by_split["train"][0].text.startswith("Fellow-Citizens")
    assert len({document.content for found in by_split.values() for document in found}) == 249


def test_the_document_that_leaks_is_in_train():
    names = [f"{number:03}" for number in range(210)] + ["1981-Carter-1", "1982-Reagan-1"]
    validation = sotu_text.validation_ids(names)
    assert "1981-Carter-1" not in validation
    assert {"010", "030", "190", "1982-Reagan-1"} <= validation
    assert len(validation) == 11


def test_other_versions_of_the_texts_are_refused(tmp_path, monkeypatch: pytest.MonkeyPatch):
    from jaxpretrain.config.errors import InputError

    (tmp_path / "speeches").mkdir()
    (tmp_path / "speeches" / "1790-Washington-1.txt").write_text("I embrace")
    builder = sotu_text.SotuText(data_dir=tmp_path / "tfds", file_format="array_record")
    files = {"1790-Washington-1": {"parsed_text_sha256": "0" * 64}}
    with pytest.raises(InputError, match=r"1790-Washington-1\.txt is damaged"):
        list(builder._generate_examples(tmp_path, files, ["1790-Washington-1"]))


def test_reading_it_imports_neither_tensorflow_nor_pandas():
    program = (
        "import sys; from jaxpretrain.data.prepare.documents import TfdsDocuments\n"
        "assert sum(1 for _ in TfdsDocuments('sotu_text', None, 'text', 0.05, False)) == 249\n"
        "print([name for name in ('tensorflow', 'pandas', 'sotu') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip().splitlines()[-1:] == ["[]"], done.stderr
