"""Images in WebDataset's tar shards and in parquet files, in random access.

Where each image lies is found once for each file, and kept in the cache folder.
"""

import hashlib
import json
import re
import tarfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.paths import PathText
from jaxpretrain.config.schema import Mark
from jaxpretrain.data.folders import find_files
from jaxpretrain.data.images.image_sources import SUFFIXES, ImageSet, Split, divide
from jaxpretrain.data.prepare.columnar import import_pyarrow, require_columns
from jaxpretrain.storage.files import cache_dir, stat_of, write_atomically

KINDS = (".tar", ".parquet")

_KEPT_GROUPS = 4
"""The number of row groups of parquet files that stay in memory."""


class _Entry(NamedTuple):
    """One image in a file."""

    name: str
    first: int
    """The first byte in a tar; the row group in a parquet file."""
    second: int
    """The number of bytes in a tar; the row in its group in a parquet file."""
    label: str | None


@dataclass(frozen=True)
class Shards:
    """Images in tar files, as WebDataset writes them, or in parquet files with their bytes."""

    root: Annotated[PathText | None, Mark.NO_EFFECT] = None
    """Folder, searched with all below it for .tar and .parquet."""
    validation_root: PathText | None = None
    """Folder of held-out shards; none: `validation_fraction` of the images of `root`."""
    image_key: str = "image"
    """Column of the images in parquet: bytes, or a struct with `bytes`."""
    label_key: str = "label"
    """Column of the class in parquet; key of it in a .json of a tar, if there is no .cls."""

    def set_name(self) -> str:
        """Returns the name of evaluations of these images: that of the folder."""
        path = Path(self.root or "images").expanduser().absolute()
        return re.sub(r"[^\w.-]+", "_", path.name) or "images"

    def open(self, validation_fraction: float) -> tuple[Split, Split]:
        """Opens training and held-out images. Raises InputError for missing folders and files."""
        if self.root is None:
            raise InputError("data.source.root is not set: name a folder of shards")
        train, held_out = self._find(self.root, "root", None), None
        if self.validation_root is not None:
            held_out = self._find(self.validation_root, "validation_root", train.classes)
        return divide(train, held_out, validation_fraction)

    def _find(self, root: str, name: str, classes: tuple[str, ...] | None) -> "ShardImages":
        folder = Path(root).expanduser()
        if not folder.is_dir():
            raise InputError(f"data.source.{name} {folder}: no such folder")
        paths, notes = find_files(
            folder,
            lambda path: path.suffix.lower() in KINDS,
            what=f"shards ({', '.join(KINDS)})",
            if_none=f"set data.source.{name} to a folder of shards",
            if_few="move the others",
        )
        found = [_entries(path, self.image_key, self.label_key) for path in paths]
        entries = [entry for of_file in found for entry in of_file]
        if not entries:
            raise InputError(f"{folder}: its shards hold no images ({', '.join(SUFFIXES)})")
        labels = {entry.label for entry in entries}
        if classes is None:
            known = sorted(label for label in labels if label is not None)
            classes = () if None in labels else tuple(sorted(known, key=lambda x: (len(x), x)))
        return ShardImages(
            place=str(folder),
            classes=classes,
            notes=notes,
            root=folder,
            paths=paths,
            files=np.repeat(np.arange(len(paths)), [len(of_file) for of_file in found]),
            entries=entries,
            image_key=self.image_key,
        )


@dataclass(frozen=True, kw_only=True)
class ShardImages(ImageSet):
    """The images of several files, in the order of the files' names and within them."""

    root: Path
    paths: list[Path] = field(repr=False)
    files: np.ndarray = field(repr=False)
    """The index of the file of each image, int64 [n]."""
    entries: list[_Entry] = field(repr=False)
    image_key: str
    _groups: "OrderedDict[tuple[int, int], Any]" = field(
        default_factory=OrderedDict, init=False, repr=False
    )

    def __len__(self) -> int:
        return len(self.entries)

    def name(self, index: int) -> str:
        """Returns the path of its file below the root, and its name there."""
        path = self.paths[self.files[index]].relative_to(self.root)
        return f"{path.as_posix()}/{self.entries[index].name}"

    def read(self, index: int) -> bytes:
        """Returns the bytes of an image."""
        number, entry = int(self.files[index]), self.entries[index]
        path = self.paths[number]
        try:
            if path.suffix.lower() == ".tar":
                with path.open("rb") as file:
                    file.seek(entry.first)
                    return file.read(entry.second)
            cell = self._group(number, entry.first)[entry.second].as_py()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error})") from None
        return (cell.get("bytes") if isinstance(cell, dict) else cell) or b""

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """Returns the labels. Raises InputError for a class that training has not."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        found = [self.entries[index].label for index in indices]
        for index, label in zip(indices, found, strict=True):
            if label not in numbers:
                raise InputError(f"{self.name(index)}: {label} is no class of the training images")
        return np.array([numbers[label] for label in found if label is not None], np.int32)

    def identity(self) -> str:
        """Returns a hash of the names."""
        names = "\n".join(self.name(index) for index in range(len(self)))
        return hashlib.sha256(names.encode()).hexdigest()

    def _group(self, number: int, group: int) -> Any:
        if (number, group) not in self._groups:
            parquet = import_pyarrow("images in parquet files").parquet
            with parquet.ParquetFile(self.paths[number]) as file:
                column = file.read_row_group(group, [self.image_key]).column(0)
            while len(self._groups) >= _KEPT_GROUPS:
                self._groups.popitem(last=False)
            self._groups[number, group] = column
        return self._groups[number, group]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_groups": OrderedDict()}


def _entries(path: Path, image_key: str, label_key: str) -> list[_Entry]:
    """Returns the images of a file, of the cache where this very file was read before."""
    stat = stat_of(path)
    made_from = [str(path.absolute()), stat.st_size, stat.st_mtime_ns, image_key, label_key]
    name = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:24]
    kept = cache_dir() / "shards" / f"{name}.json"
    if kept.exists():
        return [_Entry(*row) for row in json.loads(kept.read_text())]
    is_tar = path.suffix.lower() == ".tar"
    found = list(_in_tar(path, label_key) if is_tar else _in_parquet(path, image_key, label_key))
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(kept, json.dumps(found))
    return found


def _in_tar(path: Path, label_key: str) -> Iterator[_Entry]:
    """Yields the images of a tar; files whose names are equal up to the first dot are a sample."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, slash, base = member.name.rpartition("/")
                stem, _, kind = base.partition(".")
                sample = f"{folder}{slash}{stem}"
                if not member.isfile():
                    continue
                if f".{kind.lower()}".endswith(SUFFIXES):
                    images.setdefault(sample, (member.name, member.offset_data, member.size))
                elif kind in ("cls", "json") and (file := tar.extractfile(member)):
                    text = file.read().decode(errors="replace").strip()
                    value = text if kind == "cls" else json.loads(text).get(label_key)
                    if value is not None and (kind == "cls" or sample not in labels):
                        labels[sample] = str(value)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise InputError(f"{path}: is damaged, or compressed ({error})") from None
    for sample, (name, start, size) in images.items():
        yield _Entry(name, start, size, labels.get(sample))


def _in_parquet(path: Path, image_key: str, label_key: str) -> Iterator[_Entry]:
    pa = import_pyarrow("images in parquet files")
    try:
        with pa.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            require_columns(path, {image_key: "data.source.image_key"}, schema.names)
            about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
            feature = about.get("info", {}).get("features", {}).get(label_key, {})
            names = feature.get("names") if isinstance(feature, dict) else None
            for group in range(file.num_row_groups):
                labels = [None] * file.metadata.row_group(group).num_rows
                if label_key in schema.names:
                    labels = file.read_row_group(group, [label_key]).column(0).to_pylist()
                for row, label in enumerate(labels):
                    label = names[label] if names and isinstance(label, int) else label
                    text = None if label is None else str(label)
                    yield _Entry(f"{group}-{row}", group, row, text)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: is damaged ({error})") from None
