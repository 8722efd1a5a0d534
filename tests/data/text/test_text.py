import shutil
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import apply_overrides, validate
from jaxpretrain.config.renames import upgraded
from jaxpretrain.data.order.order import HashedOrder, OlmoCoreOrder, OlmoOrder
from jaxpretrain.data.prepare.prepare_text import PrepareText
from jaxpretrain.data.text.corpus import RawTokens
from jaxpretrain.data.text.text import TextData
from jaxpretrain.data.token_files.manifest import MANIFEST, load_manifest
from jaxpretrain.data.token_files.masks import InstanceFilter

SEQ_LEN = 16


@dataclass(frozen=True)
class Run:
    """The part of a run's config that is about data."""

    data: TextData = TextData()


@pytest.fixture
def data(prepared: Path) -> TextData:
    return TextData(root=str(prepared), seq_len=SEQ_LEN)


def _raw(folder: Path, *lengths: int, dtype: str = "<u2") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, length in enumerate(lengths):
        (np.arange(length) + 100 * number).astype(dtype).tofile(folder / f"{number}.npy")
    return folder


def test_the_spec_of_an_example_is_what_batches_hold(data: TextData):
    (name,) = data.example_spec()
    shape, dtype = data.example_spec()[name]
    tokens = data.open(seed=0, limits={"tokens": 400}).batch(np.arange(3))[name]
    assert (tokens.shape, str(tokens.dtype)) == ((3, *shape), dtype)
    assert data.units_per_example() == ("tokens", SEQ_LEN)


@pytest.mark.parametrize("order", [OlmoOrder(), OlmoCoreOrder(), HashedOrder()])
def test_samples_are_examples_in_the_order(data: TextData, order):
    training = replace(data, order=order).open(seed=5, limits={"tokens": 400})
    expected = order.make(training.num_examples, 5)
    samples = np.array([3, 0, training.num_examples + 3, 3])
    batch = training.batch(samples)
    assert list(batch) == ["tokens"]
    assert batch["tokens"].shape == (4, SEQ_LEN) and batch["tokens"].dtype == np.int32
    np.testing.assert_array_equal(batch["tokens"], training.files.read(expected(samples)))


def test_batches_do_not_depend_on_how_they_are_divided(data: TextData):
    """Among hosts, or over restarts."""
    samples = np.arange(40, 72)
    whole = data.open(seed=1, limits={"tokens": 400}).batch(samples)["tokens"]
    for num_hosts in (2, 4):
        shares = [
            data.open(seed=1, limits={"tokens": 400}).batch(share)["tokens"]
            for share in np.split(samples, num_hosts)
        ]
        np.testing.assert_array_equal(np.concatenate(shares), whole)


def test_a_declared_number_of_examples_is_verified(data: TextData):
    num_examples = data.open(seed=0, limits={"tokens": 400}).num_examples
    declared = replace(data, num_examples=num_examples)
    assert declared.open(seed=0, limits={"tokens": 400}).num_examples == num_examples
    with pytest.raises(InputError, match=f"declares 7 .* set data.num_examples={num_examples}"):
        replace(data, num_examples=7).open(seed=0, limits={"tokens": 400})


def test_the_fingerprint_is_of_content_and_order(data: TextData, prepared: Path, tmp_path: Path):
    def fingerprint(config: TextData) -> str:
        return config.open(seed=0, limits={"tokens": 400}).fingerprint

    moved = shutil.copytree(prepared, tmp_path / "moved")
    same = [data, replace(data, root=str(moved)), replace(data, verify="size")]
    assert len({fingerprint(config) for config in same}) == 1
    others = [replace(data, seq_len=8), replace(data, order=HashedOrder())]
    others.append(replace(data, train_split="validation"))
    others.append(replace(data, order=OlmoOrder(epoch_multiple=7)))
    assert len({fingerprint(config) for config in [data, *others]}) == 5


def test_the_evaluation_set_has_the_datasets_name(data: TextData):
    (own,) = data.open_evals(limits={"tokens": 400})
    assert own.name == "tiny"
    assert replace(data, validation_split=None).open_evals(limits={"tokens": 400}) == []


def test_target_bytes_are_those_of_the_predicted_tokens(data: TextData, prepared: Path):
    """In a byte-level vocabulary each character of a piece is a byte; the EOS is none."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(prepared / "tokenizer.json"))
    eos = load_manifest(prepared).eos_id
    (evaluation,) = data.open_evals(limits={"tokens": 400})
    batch = evaluation.batch(np.arange(evaluation.num_examples))
    expected = [
        sum(len(tokenizer.id_to_token(int(token))) for token in row[1:] if token != eos)
        for row in batch["tokens"]
    ]
    assert (batch["tokens"] == eos).any()
    np.testing.assert_array_equal(evaluation.target_bytes(batch), expected)


def test_bytes_are_unknown_where_the_tokenizer_changed_the_text(
    data: TextData, prepared: Path, tmp_path: Path
):
    copy = shutil.copytree(prepared, tmp_path / "copy")
    text = (copy / MANIFEST).read_text()
    assert '"byte_exact": true' in text
    (copy / MANIFEST).write_text(text.replace('"byte_exact": true', '"byte_exact": false'))
    (evaluation,) = replace(data, root=str(copy)).open_evals(limits={"tokens": 400})
    assert evaluation.target_bytes(evaluation.batch(np.arange(2))) is None


def test_another_tokenizer_in_the_directory_is_noticed(
    data: TextData, prepared: Path, tmp_path: Path
):
    copy = shutil.copytree(prepared, tmp_path / "copy")
    path = copy / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(InputError, match=r"tokenizer\.json: is not the tokenizer that made"):
        replace(data, root=str(copy)).open(seed=0, limits={"tokens": 400})


def test_training_knows_its_tokenizer_and_describes_itself(data: TextData, prepared: Path):
    training = data.open(seed=0, limits={"tokens": 400})
    assert training.tokenizer_path == prepared / "tokenizer.json"
    line = training.describe()
    assert "\n" not in line
    for fact in (str(prepared), f"{training.num_examples:,} sequences of 16", "olmo", "SHA-256"):
        assert fact in line


def test_an_epoch_is_cut_to_the_multiple_and_chunks_lie_together(tmp_path: Path):
    _raw(tmp_path, 40, 56)  # of two sequences at a time: 4 and 6 of them
    data = TextData(root=str(tmp_path), seq_len=8, order=OlmoCoreOrder(epoch_multiple=4, chunk=2))
    assert data.open(seed=0, limits={"tokens": 200}).num_examples == 8
    declared = replace(data, num_examples=10)
    with pytest.raises(InputError, match="an epoch of .* has 8; set data.num_examples=8"):
        declared.open(seed=0, limits={"tokens": 200})
    tokens = data.open(seed=0, limits={"tokens": 200}).batch(np.arange(8))["tokens"]
    np.testing.assert_array_equal(tokens[1::2], tokens[::2] + 8)


def test_samples_are_located_and_found(data: TextData, prepared: Path):
    training = data.open(seed=3, limits={"tokens": 400})
    samples = np.array([0, 5, training.num_examples + 5])
    tokens = training.batch(samples)["tokens"]
    for place, sample, row in zip(training.locate(samples), samples, tokens, strict=True):
        ids = np.fromfile(prepared / place.file, "<u2")
        np.testing.assert_array_equal(ids[slice(*place.tokens)], row)
        assert (place.sample, place.source) == (sample, None)
        assert place.epoch == sample // training.num_examples
        assert sample in training.find(place.example, 2 * training.num_examples)
    assert training.eos_id == load_manifest(prepared).eos_id
    with pytest.raises(InputError, match="has examples 0 to"):
        training.find(training.num_examples, 10)
    with pytest.raises(InputError, match="no sources, and so no 'books'"):
        training.find(0, 10, "books")


def test_label_masks_and_the_filter_make_one_mask(tmp_path: Path):
    """A token counts where neither says no; a batch holds a mask where either is set."""
    tokens, masks = tmp_path / "tokens", tmp_path / "masks"
    _raw(tokens, 32)
    masks.mkdir()
    ids = np.fromfile(tokens / "0.npy", "<u2")
    ids[16:24] = 7
    ids.tofile(tokens / "0.npy")
    labels = np.arange(32) % 3 != 0
    labels.tofile(masks / "0.npy")
    data = TextData(root=str(tokens), seq_len=8)
    repeats = np.array([False, False, True, False])
    for label_mask, instance_filter in [
        (None, None),
        (str(masks), None),
        (None, InstanceFilter(max_count=8)),
        (str(masks), InstanceFilter(max_count=8)),
    ]:
        config = replace(
            data, raw=RawTokens(label_mask=label_mask), instance_filter=instance_filter
        )
        training = config.open(seed=0, limits={"tokens": 200})
        batch = training.batch(np.arange(4))
        spec = {name: (x.shape[1:], str(x.dtype)) for name, x in batch.items()}
        assert spec == config.example_spec() | config.extra_spec()
        if "mask" not in batch:
            continue
        expected = np.ones((4, 8), bool)
        if label_mask:
            expected &= labels.reshape(4, 8)
        if instance_filter:
            expected[repeats] = False
        np.testing.assert_array_equal(batch["mask"], expected[training.order(np.arange(4))])
    assert len(spec) == 2


def test_impossible_filters_are_errors(data: TextData):
    with pytest.raises(InputError, match="data.instance_filter.max_count=1: must be 3 or more"):
        validate(replace(data, instance_filter=InstanceFilter(max_count=1)), "data")
    with pytest.raises(InputError, match="data.instance_filter: there are no periods from 3 to 2"):
        replace(data, instance_filter=InstanceFilter(2, 3)).open(seed=0, limits={"tokens": 400})


def test_raw_files_are_all_for_training(tmp_path: Path):
    _raw(tmp_path / "b", 8, 9)
    _raw(tmp_path / "a", 16)
    data = TextData(root=str(tmp_path), seq_len=8)
    training = data.open(seed=0, limits={"tokens": 200})
    np.testing.assert_array_equal(training.files.read(np.arange(4))[:, 0], [0, 8, 0, 100])
    assert training.tokenizer_path is None
    assert data.open_evals(limits={"tokens": 200}) == []


def test_raw_files_may_lie_in_a_folder_for_each_split(tmp_path: Path):
    _raw(tmp_path / "train", 80)
    _raw(tmp_path / "validation", 16)
    data = TextData(root=str(tmp_path), seq_len=8)
    assert data.open(seed=0, limits={"tokens": 200}).num_examples == 10
    (evaluation,) = data.open_evals(limits={"tokens": 200})
    assert (evaluation.name, evaluation.num_examples) == ("validation", 2)
    assert evaluation.target_bytes(evaluation.batch(np.arange(2))) is None


def test_a_validation_folder_is_never_trained_on(tmp_path: Path):
    _raw(tmp_path / "validation", 16)
    _raw(tmp_path, 16)
    with pytest.raises(InputError, match="train: holds no token files"):
        TextData(root=str(tmp_path), seq_len=8).open(seed=0, limits={"tokens": 200})


def test_a_list_gives_the_order_of_raw_files(tmp_path: Path):
    _raw(tmp_path, 8, 8)
    (tmp_path / "list").write_text("1.npy\n\n0.npy\n1.npy\n")
    data = TextData(root=str(tmp_path), seq_len=8, file_list=str(tmp_path / "list"))
    files = data.open(seed=0, limits={"tokens": 200}).files
    np.testing.assert_array_equal(files.read(np.arange(3))[:, 0], [100, 0, 100])


@pytest.mark.parametrize("content", ["", "absent.npy\n"])
def test_a_bad_list_is_an_error(tmp_path: Path, content: str):
    (tmp_path / "list").write_text(content)
    data = TextData(root=str(tmp_path), seq_len=8, file_list=str(tmp_path / "list"))
    with pytest.raises(InputError, match=r"names no files|absent\.npy: cannot be read"):
        data.open(seed=0, limits={"tokens": 200})
    with pytest.raises(InputError, match="data.file_list nowhere"):
        replace(data, file_list="nowhere").open(seed=0, limits={"tokens": 200})


def test_uint32_files_need_their_dtype(tmp_path: Path):
    _raw(tmp_path, 64, dtype="<u4")
    data = TextData(root=str(tmp_path), seq_len=8)
    training = replace(data, raw=RawTokens("uint32")).open(seed=0, limits={"tokens": 200})
    np.testing.assert_array_equal(training.files.read(np.array([7]))[0], np.arange(56, 64))


def test_no_root_says_how_to_get_one():
    with pytest.raises(InputError, match=r"data.root is not set; .*jaxpretrain\.prepare"):
        TextData().open(seed=0, limits={"tokens": 400})


@pytest.mark.parametrize("make", [False, True])
def test_a_missing_or_empty_root_says_how_to_get_one(tmp_path: Path, make: bool):
    root = tmp_path / "root"
    if make:
        root.mkdir()
    with pytest.raises(InputError, match=r"root: .*jaxpretrain\.prepare --output=DIR"):
        TextData(root=str(root)).open(seed=0, limits={"tokens": 400})


def test_an_unfinished_root_says_so(prepared: Path, tmp_path: Path):
    copy = shutil.copytree(prepared, tmp_path / "copy")
    (copy / MANIFEST).rename(copy / "unfinished.json")
    with pytest.raises(InputError, match="copy: is unfinished"):
        TextData(root=str(copy)).open(seed=0, limits={"tokens": 400})


def test_a_split_without_one_sequence_is_an_error(data: TextData):
    long = replace(data, seq_len=10**6)
    with pytest.raises(InputError, match="split train has .* not one sequence of 1000000"):
        long.open(seed=0, limits={"tokens": 400})
    with pytest.raises(InputError, match="split validation has .* data.validation_split=none"):
        long.open_evals(limits={"tokens": 400})


@pytest.mark.parametrize("change", [{"seq_len": 1}, {"file_list": "list"}, {"train_split": "tain"}])
def test_impossible_settings_are_errors(data: TextData, change: dict):
    with pytest.raises(InputError):
        changed = replace(data, **change)
        validate(changed, "data")
        changed.open(seed=0, limits={"tokens": 400})


def test_hashes_cannot_be_verified_without_a_manifest(tmp_path: Path):
    _raw(tmp_path, 64)
    with pytest.raises(InputError, match="no hashes to verify by"):
        TextData(root=str(tmp_path), seq_len=8, verify="hash").open(seed=0, limits={"tokens": 200})


def test_text_is_prepared_once_in_the_cache(
    spec: PrepareText, prepared: Path, empty_cache: Path, data: TextData
):
    config = replace(data, root=None, prepare=spec)
    first = config.open(seed=0, limits={"tokens": 400})
    assert first.corpus.root.is_relative_to(empty_cache)
    before = {path: path.stat().st_mtime_ns for path in first.corpus.root.rglob("*")}
    assert config.open(seed=0, limits={"tokens": 400}).corpus.root == first.corpus.root
    assert {path: path.stat().st_mtime_ns for path in first.corpus.root.rglob("*")} == before
    assert first.fingerprint == data.open(seed=0, limits={"tokens": 400}).fingerprint


def test_two_that_prepare_at_once_get_the_same(
    spec: PrepareText, empty_cache: Path, data: TextData
):
    config, found = replace(data, root=None, prepare=spec), []

    def prepare() -> None:
        found.append(config.open(seed=0, limits={"tokens": 400}).fingerprint)

    threads = [threading.Thread(target=prepare) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [data.open(seed=0, limits={"tokens": 400}).fingerprint] * 3


def test_the_real_corpus_end_to_end():
    """The default dataset through TFDS: known counts, and exact bytes on the whole of it."""
    data = TextData(prepare=PrepareText(dataset="sotu_text"), seq_len=256)
    training = data.open(seed=0, limits={"tokens": 8192})
    manifest = load_manifest(training.corpus.root)
    assert {name: split.num_documents for name, split in manifest.splits.items()} == {
        "train": 237,
        "validation": 12,
    }
    assert manifest.vocab_size == 8192 and manifest.tokenizer.byte_exact
    assert sum(split.num_bytes for split in manifest.splits.values()) == 12_185_751
    (evaluation,) = data.open_evals(limits={"tokens": 8192})
    assert evaluation.name == "sotu"
    batch = evaluation.batch(np.arange(evaluation.num_examples))
    num_bytes = evaluation.target_bytes(batch)
    assert num_bytes is not None
    assert 4.5 < num_bytes.sum() / batch["tokens"][:, 1:].size < 5.2
    examples = training.files.read(np.arange(training.num_examples))
    assert len({row.tobytes() for row in examples}) == len(examples)


def test_the_name_that_an_old_run_chose_is_dropped_and_a_flag_says_so():
    saved = {"class": "text_data", "name": "mine", "seq_len": 16}
    assert upgraded({"data": saved}) == {"data": {"class": "text_data", "seq_len": 16}}
    with pytest.raises(InputError, match=r"data\.name is written in another way now: leave it out"):
        apply_overrides(Run(), [("data.name", "mine")])


def upload(folder: Path, to: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            (to / str(file.relative_to(folder))).write_bytes(file.read_bytes())


def test_prepared_files_in_a_bucket_are_the_same_data(data: TextData, prepared: Path, bucket: Path):
    upload(prepared, bucket / "tokens")
    remote = replace(data, root="gs://bucket/tokens")
    here, there = (x.open(seed=1, limits={"tokens": 2**16}) for x in (data, remote))
    assert there.fingerprint == here.fingerprint
    assert there.tokenizer_path is not None and there.tokenizer_path.is_relative_to(bucket) is False
    file = bucket / "tokens" / load_manifest(prepared).splits["train"].files[0].name
    content = file.read_bytes()
    file.write_bytes(content[:-2] + b"\7\0")
    shutil.rmtree(there.tokenizer_path.parent)
    with pytest.raises(InputError, match="is damaged, its SHA-256 is not the manifest's"):
        remote.open(seed=1, limits={"tokens": 2**16})


@pytest.mark.parametrize("root", ["gs://bucket/words.txt", "gs://bucket/words"])
def test_a_root_in_a_bucket_without_token_files_is_named_as_it_was_given(
    data: TextData, bucket: Path, root: str
):
    (bucket / "words.txt").write_text("a")
    (bucket / "words" / "a.txt").write_text("a")
    with pytest.raises(InputError, match=f"^data.root={root}: is no folder of token files; make"):
        replace(data, root=root).open(seed=1, limits={"tokens": 2**16})


def test_of_raw_files_in_a_bucket_the_listed_ones_are_copied(bucket: Path, tmp_path: Path):
    for name in ("a.npy", "b.npy", "validation/c.npy", "other.txt"):
        (bucket / "raw" / name).write_bytes(np.arange(64, dtype=np.uint16).tobytes())
    (bucket / "list.txt").write_text("b.npy\n")
    data = TextData(root="gs://bucket/raw", file_list="gs://bucket/list.txt", seq_len=32)
    assert data.open(seed=1, limits={"tokens": 100}).num_examples == 2
    copied = tmp_path / "cache" / "buckets" / "gs" / "bucket" / "raw"
    names = {str(path.relative_to(copied)) for path in copied.rglob("*") if path.is_file()}
    assert names == {"b.npy", "validation/c.npy"}
