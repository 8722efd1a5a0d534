import gzip
import json
from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.prepare.documents import TextFiles, TfdsDocuments
from jaxpretrain.data.prepare.rows import Losses, Rows
from jaxpretrain.data.tfds_builder import TfdsName
from jaxpretrain.storage.paths import parse
from tests.bucket_server import bucket_server


def _files(*patterns: Path | str, text_key: str = "text", fraction: float = 0.0) -> TextFiles:
    return TextFiles(tuple(map(str, patterns)), text_key, fraction)


def _texts(*patterns: Path | str) -> list[str]:
    return [document.text for document in _files(*patterns)]


def _lines(texts: list[str], key: str = "text") -> bytes:
    return "".join(json.dumps({key: text}) + "\n" for text in texts).encode()


def test_a_text_file_is_one_document_and_a_line_is_one(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("one\n\ntwo é\r\n".encode())
    (tmp_path / "b.jsonl").write_bytes(_lines(["three\nlines", "four"]) + b"\n  \n")
    assert _texts(tmp_path / "a.txt", tmp_path / "b.jsonl") == [
        "one\n\ntwo é\r\n",
        "three\nlines",
        "four",
    ]


def test_compressed_files_are_read_as_they_are(tmp_path: Path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(_lines(["one", "two"])))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"three"))
    assert _texts(tmp_path) == ["one", "two", "three"]


def test_folders_are_walked_globs_expanded_and_files_count_once(tmp_path: Path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ["b.txt", "a.py", "deep/er/c.md", "deep/picture.png"]:
        (tmp_path / name).write_text(name)
    assert _texts(tmp_path) == ["a.py", "b.txt", "deep/er/c.md"]
    assert _texts(tmp_path / "deep", tmp_path / "*.txt", tmp_path) == [
        "deep/er/c.md",
        "b.txt",
        "a.py",
    ]


def test_links_are_followed_by_folders_and_globs(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "b.txt").write_text("two")
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.txt").write_text("one")
    (root / "more").symlink_to(tmp_path / "real")
    (root / "loop").symlink_to(root)
    (tmp_path / "real" / "up").symlink_to(tmp_path)
    for pattern in (root, root / "**" / "*.txt", root / "**"):
        assert _texts(pattern) == ["one", "two"]
    assert _texts(root / "m*" / "**" / "*.txt") == ["two"]
    assert _texts(root / "*" / "*.txt") == ["one", "two"]  # of loop and more


def test_hidden_files_are_no_text_unless_they_are_named(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    for name in (".c.txt", "._a.txt", "a.txt", "b.txt", "sub/.d.txt"):
        (tmp_path / name).write_text(name)
    assert _texts(tmp_path) == _texts(tmp_path / "**") == ["a.txt", "b.txt"]
    assert _files(tmp_path).notes == (f"{tmp_path}: skipped 3 hidden",)
    assert _texts(tmp_path / ".c.txt") == [".c.txt"]


def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "absent.txt")
    with pytest.raises(InputError, match=r"a\.txt: cannot be read"):
        _files(tmp_path)


def test_a_byte_order_mark_is_no_text(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one", encoding="utf-8-sig")
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + _lines(["two", "three"]))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + _lines(["four"])))
    assert _texts(tmp_path) == ["one", "two", "three", "four"]
    (document,) = _files(tmp_path / "a.txt")
    assert document.content == b"one"


@pytest.mark.parametrize("pattern", ["absent.txt", "absent*", "absent/**/*.txt"])
def test_a_pattern_that_matches_nothing_is_named(tmp_path: Path, pattern: str):
    with pytest.raises(InputError, match="no such file") as error:
        _files(tmp_path / pattern)
    assert pattern in str(error.value)


def test_an_unknown_kind_of_file_is_named(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.csv: unknown kind.*\.jsonl"):
        _files(tmp_path / "a.csv")


def test_a_folder_without_text_is_named(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="holds no text files"):
        _files(tmp_path)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"text": "cut', "is not a line of JSON"),
        (b"plain", "is not a line of JSON"),
        (b'{"body": "x", "id": 3}', r"no column 'text' \(columns: body, id\); set --text_key"),
        (b'{"text": 3}', "has a number in the column 'text'"),
        (b'{"text": ["a"]}', "has a list in the column 'text'"),
        (b'["text"]', "is a list, not an object with keys"),
        (b'{"text": "\xff"}', "is not UTF-8"),
        (b'{"text": "\\ud800"}', "half a surrogate pair"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, line: bytes, complaint: str):
    path = tmp_path / "a.jsonl"
    path.write_bytes(_lines(["good"]) + b"\n" + line + b"\n")
    with pytest.raises(InputError, match=rf"a\.jsonl:3: .*{complaint}"):
        _texts(path)


def test_a_text_file_that_is_not_utf8_is_named(tmp_path: Path):
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.txt: is not UTF-8 \(byte 2"):
        _texts(tmp_path / "latin.txt")


def test_another_key_may_hold_the_text(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(_lines(["one"], key="body"))
    documents = _files(tmp_path / "a.jsonl", text_key="body")
    assert [document.text for document in documents] == ["one"]


def test_validation_is_chosen_by_content(tmp_path: Path):
    """About the fraction asked for; the same documents whatever else there is."""
    texts = [f"document {number}" for number in range(2000)]
    (tmp_path / "a.jsonl").write_bytes(_lines(texts))
    (tmp_path / "b.jsonl").write_bytes(_lines([*texts[1000:], *texts[1000:]]))

    def validation(name: str) -> list[str]:
        documents = _files(tmp_path / name, fraction=0.1)
        assert documents.splits == ("train", "validation")
        return [document.text for document in documents if document.split == "validation"]

    all_ = validation("a.jsonl")
    assert 150 < len(all_) < 250  # 200, deviation 13
    later = [text for text in all_ if text in texts[1000:]]
    assert validation("b.jsonl") == [*later, *later]


def test_identity_changes_with_a_file(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = _files(path).identity
    assert _files(path).identity == before
    path.write_text("four")
    assert _files(path).identity != before


@pytest.mark.parametrize(
    ("text", "name", "config"),
    [("c4", "c4", None), ("c4:en", "c4", "en"), ("c4/en:2.0", "c4", "en:2.0")],
)
def test_dataset_names(text: str, name: str, config: str | None):
    parsed = TfdsName.parse(text)
    assert (parsed.name, parsed.config) == (name, config)


def _tfds(dataset: str, **changes) -> TfdsDocuments:
    options = {"text_key": "text", "validation_fraction": 0.05, "download": False}
    return TfdsDocuments(dataset, **{"data_dir": None, **options, **changes})


def test_an_unknown_dataset_names_the_nearest():
    with pytest.raises(InputError, match="sotu_texts: no such TFDS dataset. Did you mean 'sotu_t"):
        _tfds("sotu_texts")


def test_a_dataset_that_is_not_prepared_is_not_downloaded(tmp_path: Path):
    with pytest.raises(InputError, match=r"imdb_reviews: is not prepared in .* --download"):
        _tfds("imdb_reviews", data_dir=str(tmp_path))


def test_an_unknown_feature_names_the_known():
    with pytest.raises(
        InputError, match=r"no feature 'texts' \(features: id, text, year\); set --text_key.*'text'"
    ):
        _tfds("sotu_text", text_key="texts")


def test_a_feature_that_is_not_text_is_refused():
    with pytest.raises(InputError, match="feature 'year' is not text"):
        list(_tfds("sotu_text", text_key="year"))


@pytest.fixture(scope="module")
def train_only(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The data_dir of a prepared dataset `lines` whose one split is train."""
    tfds = pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("tfds")
    features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
    info_dir = folder / "lines" / "1.0.0"
    info_dir.mkdir(parents=True)
    writer = pytest.importorskip("array_record.python.array_record_module").ArrayRecordWriter(
        str(info_dir / "lines-train.array_record-00000-of-00001"), "group_size:1"
    )
    for number in range(300):
        writer.write(features.serialize_example({"text": f"line {number}"}))
    writer.close()
    split = tfds.core.SplitInfo(
        name="train",
        shard_lengths=[300],
        num_bytes=0,
        filename_template=tfds.core.ShardedFileTemplate(
            dataset_name="lines",
            data_dir=info_dir,
            split="train",
            filetype_suffix="array_record",
        ),
    )
    tfds.folder_dataset.write_metadata(
        data_dir=info_dir, features=features, split_infos=[split], check_data=False
    )
    return str(folder)


def test_a_dataset_with_nothing_but_train_is_divided(train_only: str):
    documents = _tfds("lines", data_dir=train_only, validation_fraction=0.2)
    assert documents.splits == ("train", "validation")
    assert documents.num_documents == 300
    by_split = {
        split: [d.text for d in documents if d.split == split] for split in ("train", "validation")
    }
    assert 30 < len(by_split["validation"]) < 90
    assert sorted([*by_split["train"], *by_split["validation"]]) == sorted(
        f"line {n}" for n in range(300)
    )
    whole = _tfds("lines", data_dir=train_only, validation_fraction=0.0)
    assert whole.splits == ("train",)
    assert {document.split for document in whole} == {"train"}


def test_rows_of_parquet_are_documents(tmp_path: Path):
    pytest.importorskip("pyarrow")
    from pyarrow import parquet, table

    rows = {"title": ["a", "b", "c"], "body": ["one", "two", None], "score": [1, 5, 4]}
    parquet.write_table(table(rows), tmp_path / "a.parquet")
    losses = Losses()
    chosen = Rows(template="{title}\n{body}", where=("score>=3",), id_key="title")
    documents = TextFiles((str(tmp_path),), "text", 0.0, chosen)
    found = [(document.text, document.id) for document in documents.read(losses)]
    assert found == [("b\ntwo", "b"), ("c\n", "c")]
    assert losses.counts == {"filtered": 1}
    with pytest.raises(
        InputError, match=r"a\.parquet: has no column 'boddy'.*set --text_key.*'body'"
    ):
        _ = list(TextFiles((str(tmp_path),), "boddy", 0.0))


def test_a_separator_stands_between_documents(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one\n<end>\ntwo\n\n<end>\n<end>\xe9<end>\n")
    (tmp_path / "b.jsonl").write_bytes(_lines(["three<end>four"]))
    losses = Losses()
    documents = TextFiles((str(tmp_path),), "text", 0.0, Rows(document_separator="<end>"))
    assert [d.text for d in documents.read(losses)] == ["one", "two", "é", "three", "four"]
    assert losses.counts == {"empty": 2}


def test_what_is_no_text_is_left_out_up_to_a_number(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(
        _lines(["one", None, "x" * 99]) + b'{"text": "\xff"}\nplain\n'
    )
    (tmp_path / "b.txt").write_bytes(b"\xff")
    losses, rows = Losses(3), Rows(max_bytes=50, max_undecodable=3)
    documents = TextFiles((str(tmp_path),), "text", 0.0, rows)
    assert [document.text for document in documents.read(losses)] == ["one"]
    assert losses.counts == {"empty": 1, "too_long": 1, "undecodable": 3}
    with pytest.raises(InputError, match=r"b\.txt: is not UTF-8.*more than --max_undecodable=2"):
        list(documents.read(Losses(2)))


def test_text_without_columns_has_no_columns_to_test(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one")
    documents = TextFiles((str(tmp_path),), "text", 0.0, Rows(where=("score>=3",)))
    with pytest.raises(InputError, match=r"a\.txt: is text without columns"):
        list(documents)


def test_rows_of_a_dataset_are_tested():
    rows = Rows(template="{id}: {year}", where=("year>=2020",), id_key="id")
    documents = _tfds("sotu_text", rows=rows)
    found = list(documents)
    assert found and all(
        document.text == f"{document.id}: {document.text[-4:]}" for document in found
    )
    assert all(int(document.text[-4:]) >= 2020 for document in found)
    with pytest.raises(InputError, match="no feature 'yeer'.*set --where.*'year'"):
        _tfds("sotu_text", rows=Rows(where=("yeer>=2020",)))


def test_files_of_a_bucket_are_read_where_they_are(monkeypatch: pytest.MonkeyPatch):
    with bucket_server() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        for name, texts in {"a/1.jsonl.gz": ["one"], "a/b/2.jsonl.gz": ["two", "three"]}.items():
            (parse("gs://bucket") / name).write_bytes(gzip.compress(_lines(texts)))
        (parse("gs://bucket") / "a" / "picture.png").write_bytes(b"")
        assert _texts("gs://bucket/a") == ["one", "two", "three"]
        assert _texts("gs://bucket/a/*/*.gz", "gs://bucket/a/1.jsonl.gz") == ["two", "three", "one"]
        with pytest.raises(InputError, match=r"gs://bucket/a/\*\.txt: no such file of a known"):
            _texts("gs://bucket/a/*.txt")
        before = _files("gs://bucket/a/1.jsonl.gz").identity
        (parse("gs://bucket") / "a/1.jsonl.gz").write_bytes(gzip.compress(_lines(["four"])))
        assert _files("gs://bucket/a/1.jsonl.gz").identity != before
