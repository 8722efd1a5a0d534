import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.images import shards
from jaxpretrain.data.images.image_codec import decode, encode_png
from jaxpretrain.data.images.images import ImageData
from jaxpretrain.data.images.shards import Shards

pytestmark = pytest.mark.usefixtures("empty_cache")


def _picture(number: int) -> bytes:
    return encode_png(np.full((8, 8, 3), number, np.uint8))


def _tar(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Two shards of ten samples, with classes 0 to 2 and captions."""
    for shard in range(2):
        files: dict[str, bytes] = {}
        for number in range(10 * shard, 10 * shard + 10):
            files[f"{number:06}.png"] = _picture(number)
            files[f"{number:06}.cls"] = str(number % 3).encode()
            files[f"{number:06}.txt"] = b"a caption"
        _tar(tmp_path / "tars" / f"train-{shard}.tar", files)
    return tmp_path / "tars"


@pytest.fixture
def parquets(tmp_path: Path) -> Path:
    """The same pictures as rows, as `datasets` stores them, in groups of 3."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows: dict[str, list[Any]] = {
        "image": [{"bytes": _picture(number), "path": f"{number}.png"} for number in range(20)],
        "label": [number % 3 for number in range(20)],
    }
    feature = {"names": ["cat", "dog", "eel"], "_type": "ClassLabel"}
    about = json.dumps({"info": {"features": {"label": feature}}})
    table = arrow.table(rows).replace_schema_metadata({"huggingface": about})
    (tmp_path / "parquets").mkdir()
    parquet.write_table(table, tmp_path / "parquets" / "a.parquet", row_group_size=3)
    return tmp_path / "parquets"


@pytest.mark.parametrize("kind", ["tars", "parquets"])
def test_every_image_is_read_in_any_order(kind: str, request: pytest.FixtureRequest):
    root = request.getfixturevalue(kind)
    (images, indices), (_, held_out) = Shards(root=str(root)).open(0.0)
    assert len(images) == len(indices) == 20 and not len(held_out)
    images = pickle.loads(pickle.dumps(images))
    for index in np.random.default_rng(0).permutation(20):
        assert images.read(int(index)) == _picture(int(index))
    assert images.labels(np.arange(6)).tolist() == [0, 1, 2, 0, 1, 2]
    expected = ("0", "1", "2") if kind == "tars" else ("cat", "dog", "eel")
    assert images.classes == expected
    assert len({images.name(index) for index in range(20)}) == 20


@pytest.mark.parametrize("kind", ["tars", "parquets"])
def test_the_index_is_made_once(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
):
    root = str(request.getfixturevalue(kind))
    (first, _), _ = Shards(root=root).open(0.1)
    monkeypatch.setattr(shards, "_in_tar", None)
    monkeypatch.setattr(shards, "_in_parquet", None)
    (second, _), _ = Shards(root=root).open(0.1)
    assert second.identity() == first.identity()
    assert second.read(7) == first.read(7)


def test_a_run_reads_the_same_samples_again(tars: Path):
    data = ImageData(source=Shards(root=str(tars)), size=4, validation_fraction=0.0)
    training = data.open(seed=1, limits={})
    samples = np.array([3, 41, 3])
    batch = training.batch(samples)["images"]
    np.testing.assert_array_equal(batch, data.open(seed=1, limits={}).batch(samples)["images"])
    np.testing.assert_array_equal(batch[0], batch[2])
    assert training.num_examples == 20


def test_labels_may_lie_in_json_and_samples_in_folders(tmp_path: Path):
    files = {"a/1.png": _picture(1), "a/1.json": b'{"label": "fox"}', "b/1.png": _picture(2)}
    files["b/1.json"] = b'{"label": "owl"}'
    _tar(tmp_path / "x" / "a.tar", files)
    (images, _), _ = Shards(root=str(tmp_path / "x")).open(0.0)
    assert images.classes == ("fox", "owl")
    assert decode(images.read(1)).getpixel((0, 0)) == (2, 2, 2)


def test_bad_shards_are_one_line(tmp_path: Path, parquets: Path):
    with pytest.raises(InputError, match="no column 'img' .*'image'"):
        Shards(root=str(parquets), image_key="img").open(0.0)
    with pytest.raises(InputError, match="data.source.root is not set"):
        Shards().open(0.0)
    with pytest.raises(InputError, match="data.source.root .*absent: no such folder"):
        Shards(root=str(tmp_path / "absent")).open(0.0)
    _tar(tmp_path / "x" / "a.tar", {"1.txt": b"text"})
    with pytest.raises(InputError, match="its shards hold no images"):
        Shards(root=str(tmp_path / "x")).open(0.0)
    (tmp_path / "x" / "a.tar").write_bytes(b"not a tar at all" * 100)
    with pytest.raises(InputError, match=r"a\.tar: is damaged"):
        Shards(root=str(tmp_path / "x")).open(0.0)
    (parquets / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"a\.parquet: is damaged"):
        Shards(root=str(parquets)).open(0.0)
