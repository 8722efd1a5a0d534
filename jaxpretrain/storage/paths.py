"""Paths that users write, of this machine or, as URLs, of a bucket: one kind for all the code.

A URL becomes a path of `etils.epath`, which has the methods of `pathlib.Path` and is what Orbax
takes. Below it lies fsspec, so that another store is another row of `_STORES`. Local paths stay
those of pathlib: files that are mapped, locked and renamed need them.
"""

import argparse
import importlib.util
import math
import os
import re
from pathlib import Path, PurePath
from typing import Any, NamedTuple, cast

from jaxpretrain.config import paths
from jaxpretrain.config.errors import InputError, install


class _Store(NamedTuple):
    """A kind of store."""

    extra: str
    """The extra of this package that brings what is needed."""
    package: str
    file_system: str
    """The class that fsspec uses, by its full name."""
    driver: str
    """The name of its key-value store in TensorStore; "" for a store that is only read from."""


_STORES = {
    "gs": _Store("gcs", "gcsfs", "jaxpretrain.storage.gcs.Gcs", "gcs"),
    "hf": _Store("data", "huggingface_hub", "huggingface_hub.HfFileSystem", ""),
}
"""URL scheme -> store."""


def parse(text: str, flag: str = "", *, is_only_read: bool = False) -> Path:
    """Returns the path in a text: of this machine with `~` expanded, or in a bucket.

    Where it is only read, it may also lie on the Hugging Face hub: `hf://datasets/ORG/NAME/...`.
    Raises InputError, which begins with the flag, for no path, and for a URL of a store that is
    not known, whose package is missing, or that names no bucket or goes up by `..`.
    """
    patience()  # so that a wrong one is refused here, not at the first request that fails
    where = f"{flag}={text}" if flag else text
    scheme, is_url, rest = text.partition("://")
    if not is_url:
        return paths.expand(text, flag)
    stores = {name: store for name, store in _STORES.items() if store.driver or is_only_read}
    if scheme not in stores:
        known = ", ".join(f"{name}://" for name in stores)
        raise InputError(f"{where}: there is no store {scheme}:// here; write a folder or {known}")
    store = stores[scheme]
    if importlib.util.find_spec(store.package) is None:
        raise InputError(
            f"{where}: {scheme}:// needs the package {store.package}, of the extra {store.extra}: "
            f"{install(store.extra)}"
        )
    if not re.match(r"[a-z0-9][\w.-]+(/|$)", rest):
        raise InputError(f"{where}: names no bucket; write {scheme}://my-bucket/FOLDER")
    if ".." in rest.split("/"):  # which each client reads in its own way
        raise InputError(f"{where}: a bucket has no '..'; write the place without it")
    _prepare_clients(scheme, store)
    from etils import epath  # here, because most commands never see a URL

    return cast(Path, epath.Path(text))


def as_path(text: str) -> Path:
    """Returns the path or URL of a command-line flag; this is the `type` of an argument."""
    try:
        return parse(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix(f"{text}: ")) from None


def is_remote(path: PurePath) -> bool:
    """Returns true for a path in a bucket."""
    return "://" in str(path)[:8]


def absolute(path: Path) -> Path:
    """Returns the path from the root of the file system; that in a bucket is already."""
    return path if is_remote(path) else path.absolute()


def kvstore(path: PurePath) -> dict[str, Any]:
    """Returns what TensorStore calls the folder of a path: a driver and a place."""
    text = str(path)
    if not is_remote(path):
        return {"driver": "file", "path": f"{text}/"}
    scheme, _, rest = text.partition("://")
    bucket, _, inside = rest.partition("/")
    return {
        "driver": _STORES[scheme].driver,
        "bucket": bucket,
        "path": f"{inside}/" if inside else "",
    }


def file_system(path: PurePath) -> Any:
    """Returns the fsspec file system of a path in a bucket, the one that the path uses itself."""
    from etils.epath.backend import fsspec_backend

    return fsspec_backend.fs(str(path))


def names_in(folder: Path) -> list[str]:
    """Returns the names of what lies directly in a folder; none where there is no such folder.

    A bucket lists no more than these, however many objects lie below them, which `glob` would list.
    """
    try:
        return sorted(path.name for path in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def list_files(folder: Path) -> dict[Path, dict[str, Any]]:
    """Returns each file below a folder, sorted, with what is known of it: `size` in bytes, ...

    A bucket tells `mtime` and `md5Hash` too. A path that is a file has itself; a missing one none.
    """
    if not is_remote(folder):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path: {"size": path.stat().st_size} for path in files}
    found = file_system(folder).find(str(folder), detail=True)
    root = str(folder).partition("://")[2]
    return {
        folder / name.lstrip("/").removeprefix(root).lstrip("/"): about
        for name, about in sorted(found.items())
        if not name.endswith("/")  # an object that stands for a folder
    }


def patience() -> float:
    """Returns the seconds for which a failing request is tried again, 300 by default.

    `$JAXPRETRAIN_STORAGE_SECONDS` sets them. Raises InputError where it is no number of seconds.
    """
    text = os.environ.get("JAXPRETRAIN_STORAGE_SECONDS") or "300"
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise InputError(
            f"JAXPRETRAIN_STORAGE_SECONDS={text}: must be a number of seconds, such as 300"
        )
    return seconds


def _prepare_clients(scheme: str, store: _Store) -> None:
    """Makes all clients of a store alike: fsspec's class, TensorStore's time limits, emulators."""
    import fsspec
    from etils.epath import gpath

    # Otherwise epath takes TensorFlow's client, which has no time limits; it may have chosen it.
    os.environ["EPATH_USE_TF"] = "false"
    gpath._is_tf_installed.cache_clear()
    for name in {scheme, store.driver or scheme}:
        fsspec.register_implementation(name, store.file_system, clobber=True)
    # A transfer that stands still for a minute has failed, and TensorStore begins it again.
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", "60")
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
    if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", emulator)
        os.environ.setdefault("GOOGLE_AUTH_TOKEN_FOR_TESTING", "anonymous")
