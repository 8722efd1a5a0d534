import json
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import validate
from jaxpretrain.data.prepare import prepare_text as module
from jaxpretrain.data.prepare.prepare_text import PrepareText, cache_name, prepare_text
from jaxpretrain.data.prepare.rows import Rows
from jaxpretrain.data.token_files.manifest import MANIFEST, Manifest, load_manifest
from jaxpretrain.data.token_files.tokenizer import token_bytes


def _prepare(spec: PrepareText, output: Path, workers: int = 1) -> Manifest:
    return prepare_text(spec, output, workers=workers)


def _files(root: Path) -> dict[str, bytes]:
    paths = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def _tokens(root: Path, split: str) -> np.ndarray:
    manifest = load_manifest(root)
    files = manifest.splits[split].files
    return np.concatenate([np.fromfile(root / file.name, manifest.dtype) for file in files])


def test_the_directory_holds_the_documents(prepared: Path, texts: list[str]):
    """Decoded and cut at the EOS, each text is there once, in order within its split."""
    manifest = load_manifest(prepared)
    tokenizer = Tokenizer.from_file(str(prepared / manifest.tokenizer.file))
    expected = [unicodedata.normalize("NFC", text) for text in texts]
    found = []
    for split, described in manifest.splits.items():
        tokens = _tokens(prepared, split)
        assert len(tokens) == described.num_tokens
        assert tokens[-1] == manifest.eos_id
        documents = np.split(tokens, np.flatnonzero(tokens == manifest.eos_id) + 1)[:-1]
        assert len(documents) == described.num_documents
        decoded = [tokenizer.decode(ids[:-1], skip_special_tokens=False) for ids in documents]
        assert decoded == [text for text in expected if text in decoded]
        found += decoded
    assert sorted(found) == sorted(expected)
    assert sum(split.num_bytes for split in manifest.splits.values()) == sum(
        len(text.encode()) for text in texts
    )


def test_bytes_behind_the_tokens_of_each_document_are_its_texts(prepared: Path, texts: list[str]):
    manifest = load_manifest(prepared)
    assert manifest.tokenizer.byte_exact
    sizes = token_bytes((prepared / manifest.tokenizer.file).read_text())
    assert sizes is not None
    found = []
    for split in manifest.splits:
        tokens = _tokens(prepared, split)
        documents = np.split(tokens, np.flatnonzero(tokens == manifest.eos_id) + 1)[:-1]
        found += [int(sizes[ids].sum()) for ids in documents]
    assert sorted(found) == sorted(len(unicodedata.normalize("NFC", t).encode()) for t in texts)


def test_a_finished_directory_holds_nothing_else(prepared: Path):
    manifest = load_manifest(prepared)
    files = {file.name for split in manifest.splits.values() for file in split.files}
    assert len(manifest.splits["train"].files) > 1
    assert set(_files(prepared)) == {MANIFEST, manifest.tokenizer.file, *files}


def test_the_number_of_processes_does_not_matter(prepared: Path, spec: PrepareText, tmp_path: Path):
    _prepare(spec, tmp_path / "out", workers=2)
    assert _files(tmp_path / "out") == _files(prepared)


def test_interruptions_do_not_matter(
    prepared: Path, spec: PrepareText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, encode, counts = _files(prepared), module.encode, []

    def interrupted(*args: Any):
        counts.append(0)
        for item in encode(*args):
            if counts[-1] == 70:
                raise KeyboardInterrupt
            yield item
            counts[-1] += 1

    monkeypatch.setattr(module, "encode", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            _prepare(spec, tmp_path / "out")
        assert not (tmp_path / "out" / MANIFEST).exists()
        assert not list((tmp_path / "out").rglob("*.unfinished-*"))
    monkeypatch.setattr(module, "encode", encode)
    _prepare(spec, tmp_path / "out")
    assert _files(tmp_path / "out") == whole
    assert counts == [70, 70]  # so the second began after the first's finished parts


def test_finished_parts_are_not_tokenized_again(
    spec: PrepareText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    encode, encoded = module.encode, []

    def counted(*args: Any):
        for item in encode(*args):
            encoded.append(item[0].text)
            yield item

    def fails(*args: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(module, "encode", counted)
    monkeypatch.setattr(module.manifests, "save_manifest", fails)
    with pytest.raises(OSError, match="disk is full"):
        _prepare(spec, tmp_path / "out")
    num_documents = len(encoded)
    monkeypatch.undo()
    monkeypatch.setattr(module, "encode", counted)
    _prepare(spec, tmp_path / "out")
    assert len(encoded) == num_documents


def test_a_finished_directory_is_left_as_it_is(
    prepared: Path, spec: PrepareText, monkeypatch: pytest.MonkeyPatch
):
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    assert _prepare(spec, prepared) == load_manifest(prepared)
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*")} == before


def test_files_that_changed_are_another_dataset(
    prepared: Path, spec: PrepareText, corpus: Path, tmp_path: Path
):
    changed = Path(shutil.copy(corpus, tmp_path / "corpus.jsonl"))
    out = tmp_path / "out"
    here = replace(spec, files=(str(changed),))
    _prepare(here, out)
    name = cache_name(here)
    changed.write_text(changed.read_text() + '{"text": "one more"}\n')
    assert cache_name(here) != name
    with pytest.raises(InputError, match="holds another dataset, 'tiny'"):
        _prepare(here, out)


@pytest.mark.parametrize("change", [{"vocab_size": 300}, {"name": "x"}, {"part_tokens": 100}])
def test_other_options_are_another_dataset(
    prepared: Path, spec: PrepareText, change: dict[str, Any]
):
    with pytest.raises(InputError, match="holds another dataset"):
        _prepare(replace(spec, **change), prepared)
    assert cache_name(replace(spec, **change)) != cache_name(spec)


def test_unfinished_parts_of_another_dataset_are_kept(spec: PrepareText, tmp_path: Path):
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(module.manifests, "save_manifest")
        with pytest.raises(AttributeError):
            _prepare(spec, tmp_path / "out")
    before = _files(tmp_path / "out")
    with pytest.raises(InputError, match="unfinished parts of another dataset"):
        _prepare(replace(spec, vocab_size=300), tmp_path / "out")
    assert _files(tmp_path / "out") == before


def test_a_directory_of_something_else_is_left_alone(spec: PrepareText, tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not empty and was not made by prepare"):
        _prepare(spec, tmp_path)
    with pytest.raises(InputError, match=r"thesis\.tex: is a file"):
        _prepare(spec, tmp_path / "thesis.tex")


def test_a_given_tokenizer_is_used_as_it_is(prepared: Path, spec: PrepareText, tmp_path: Path):
    given = str(prepared / "tokenizer.json")
    manifest = _prepare(replace(spec, tokenizer=given), tmp_path / "out")
    theirs = load_manifest(prepared)
    assert manifest.tokenizer == theirs.tokenizer
    assert manifest.splits == theirs.splits
    assert _files(tmp_path / "out")["tokenizer.json"] == Path(given).read_bytes()


def test_a_large_vocabulary_takes_uint32(prepared: Path, spec: PrepareText, tmp_path: Path):
    raw = json.loads((prepared / "tokenizer.json").read_text())
    raw["added_tokens"] += [
        {**raw["added_tokens"][0], "id": 400 + number, "content": f"<{number}>"}
        for number in range(2**16)
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    large = replace(spec, tokenizer=str(tmp_path / "tokenizer.json"))
    manifest = _prepare(large, tmp_path / "out")
    assert manifest.dtype == "uint32" and manifest.vocab_size == 400 + 2**16
    np.testing.assert_array_equal(_tokens(tmp_path / "out", "train"), _tokens(prepared, "train"))


def test_no_validation_split_if_none_is_wanted(spec: PrepareText, tmp_path: Path):
    manifest = _prepare(replace(spec, validation_fraction=0.0), tmp_path / "out")
    assert list(manifest.splits) == ["train"]


def _no_corpus(spec: PrepareText, folder: Path) -> PrepareText:
    return replace(spec, files=())


def _two_corpora(spec: PrepareText, folder: Path) -> PrepareText:
    return replace(spec, dataset="sotu_text")


def _empty_corpus(spec: PrepareText, folder: Path) -> PrepareText:
    (folder / "empty.jsonl").write_text('\n{"text": ""}\n')
    return replace(spec, files=(str(folder / "empty.jsonl"),))


def _one_document(spec: PrepareText, folder: Path) -> PrepareText:
    (folder / "book.txt").write_text("a whole book " * 100)
    return replace(spec, files=(str(folder / "book.txt"),), validation_fraction=1e-9)


def _no_eos(spec: PrepareText, folder: Path) -> PrepareText:
    (folder / "t.json").write_text('{"model": {"vocab": {"a": 0}}, "added_tokens": []}')
    return replace(spec, tokenizer=str(folder / "t.json"))


def _no_tokenizer(spec: PrepareText, folder: Path) -> PrepareText:
    return replace(spec, tokenizer=str(folder / "absent.json"))


def _odd_fraction(spec: PrepareText, folder: Path) -> PrepareText:
    return replace(spec, validation_fraction=1.0)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_no_corpus, "neither a dataset nor files is given"),
        (_two_corpora, "both a dataset and files are given"),
        (_empty_corpus, "corpus is empty"),
        (_one_document, "none of the 1 documents fell into the validation split"),
        (_no_eos, "no token '<|endoftext|>'"),
        (_no_tokenizer, "no such tokenizer file"),
        (_odd_fraction, "validation_fraction=1.0"),
    ],
)
def test_bad_input_is_one_clear_line(
    spec: PrepareText,
    tmp_path: Path,
    change: Callable[[PrepareText, Path], PrepareText],
    complaint: str,
):
    with pytest.raises(InputError) as error:
        changed = change(spec, tmp_path)
        validate(changed, "--")
        _prepare(changed, tmp_path / "out")
    assert complaint in str(error.value)
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_after_a_bad_corpus_the_directory_serves_another(spec: PrepareText, tmp_path: Path):
    for change in (_empty_corpus, _one_document):
        with pytest.raises(InputError):
            _prepare(change(spec, tmp_path), tmp_path / "out")
    assert _prepare(spec, tmp_path / "out").name == "tiny"


@pytest.fixture
def rows(tmp_path: Path) -> tuple[PrepareText, Rows]:
    """A corpus with scores and names, of which some lines are lost, in several parts."""
    lines = [{"id": f"d{n}", "text": f"document {n} " * 9, "score": n % 5} for n in range(300)]
    lines += [{"id": "none", "text": "", "score": 9}, {"id": "long", "text": "x" * 999, "score": 9}]
    corpus = tmp_path / "rows.jsonl"
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines) + "cut\n")
    spec = PrepareText(
        files=(str(corpus),), validation_fraction=0.2, vocab_size=300, part_tokens=1000
    )
    chosen = Rows(
        where=("score>=2",), id_key="id", bos_token="<s>", max_bytes=500, max_undecodable=1
    )
    return spec, chosen


def test_ids_losses_and_the_first_token(rows: tuple[PrepareText, Rows], tmp_path: Path):
    spec, chosen = rows
    manifest = prepare_text(spec, tmp_path / "out", workers=1, rows=chosen)
    assert manifest.created_from["lost"] == {
        "filtered": 120,
        "empty": 1,
        "too_long": 1,
        "undecodable": 1,
    }
    lost = [json.loads(line) for line in (tmp_path / "out" / "lost.jsonl").open()]
    assert [(line["place"][-4:], line["reason"]) for line in lost] == [
        (":301", "empty"),
        (":302", "too_long"),
        (":303", "undecodable"),
    ]
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    start = tokenizer.token_to_id("<s>")
    for split in manifest.splits:
        tokens = _tokens(tmp_path / "out", split)
        ends = np.flatnonzero(tokens == manifest.eos_id)
        ids = [json.loads(line) for line in (tmp_path / "out" / split / "ids.jsonl").open()]
        documents = np.split(tokens, ends + 1)[:-1]
        assert len(ids) == len(documents) == manifest.splits[split].num_documents
        for id_, document in zip(ids, documents, strict=True):
            assert document[0] == start
            text = tokenizer.decode(document[1:-1])
            assert text.startswith(f"document {id_[1:]} ")
            assert (
                tokenizer.encode(text).ids == document[:-1].tolist()
            )  # as programs encode prompts


def test_rows_are_resumed_byte_for_byte(
    rows: tuple[PrepareText, Rows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spec, chosen = rows
    prepare_text(spec, tmp_path / "whole", workers=1, rows=chosen)
    encode = module.encode

    def interrupted(*args: Any):
        for count, item in enumerate(encode(*args)):
            if count == 100:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(module, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_text(spec, tmp_path / "out", workers=1, rows=chosen)
    assert list((tmp_path / "out").glob("*/part-*.json"))
    assert not list((tmp_path / "out").rglob("*.unfinished-*"))
    monkeypatch.setattr(module, "encode", encode)
    prepare_text(spec, tmp_path / "out", workers=1, rows=chosen)
    assert _files(tmp_path / "out") == _files(tmp_path / "whole")


def test_other_rows_are_another_dataset(rows: tuple[PrepareText, Rows], tmp_path: Path):
    spec, chosen = rows
    prepare_text(spec, tmp_path / "out", workers=1, rows=chosen)
    with pytest.raises(InputError, match="holds another dataset"):
        prepare_text(spec, tmp_path / "out", workers=1, rows=replace(chosen, where=()))


def test_a_first_token_that_is_not_there_is_named(
    prepared: Path, spec: PrepareText, tmp_path: Path
):
    given = replace(spec, tokenizer=str(prepared))
    with pytest.raises(InputError, match="no token '<s>' to begin documents.*set --bos_token"):
        prepare_text(given, tmp_path / "out", workers=1, rows=Rows(bos_token="<s>"))
