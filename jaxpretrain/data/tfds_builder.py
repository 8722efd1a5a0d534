"""TFDS datasets by name, which are prepared where they need no network or may use it.

TFDS is never allowed to download unless it is asked to, and is imported only when a TFDS dataset is
named. What is read through `data_source` needs no TensorFlow.
"""

import importlib
import os
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from jaxpretrain.config.errors import InputError, nearest
from jaxpretrain.data import builders
from jaxpretrain.display.progress import say
from jaxpretrain.storage.files import cache_dir, only_one_process

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


@dataclass(frozen=True)
class TfdsName:
    """The name of a dataset, and of its config and version where they are given."""

    name: str
    config: str | None = None
    version: str | None = None

    @classmethod
    def parse(cls, dataset: str) -> "TfdsName":
        """Reads `name` or `name:config`, as users write it (TFDS writes `name/config`)."""
        name, _, config = dataset.replace("/", ":", 1).partition(":")
        return cls(name, config or None)

    def __str__(self) -> str:
        config = f"/{self.config}" if self.config else ""
        return self.name + config + (f":{self.version}" if self.version else "")


def prepared_builder(
    dataset: TfdsName, *, data_dir: str | None, download: bool, flag: str, instead: str
) -> "tfds.core.DatasetBuilder":
    """Returns the TFDS builder of a dataset, which is prepared first where that is possible.

    Errors begin the names of options with `flag`, such as "--"; `instead` is their sentence about
    what may be given instead of a TFDS dataset.
    """
    tfds = import_tfds(instead)

    ours = [module.name for module in pkgutil.iter_modules(builders.__path__)]
    if dataset.name in ours:
        importlib.import_module(f"{builders.__name__}.{dataset.name}")  # registers it with TFDS
        data_dir = data_dir or str(cache_dir() / "tfds")
    where = data_dir or "~/tensorflow_datasets"
    try:
        return tfds.core.read_only_builder.builder_from_files(  # pyright: ignore[reportAttributeAccessIssue]
            str(dataset), **({"data_dir": data_dir} if data_dir else {})
        )
    except tfds.core.DatasetNotFoundError:
        pass  # not prepared yet
    except Exception as error:  # TFDS and protobuf raise many kinds for a damaged file
        reason = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{dataset}: its JSON files in {where} cannot be read ({reason}); prepare it again"
        ) from error
    if dataset.name in ours:
        say(f"preparing the dataset {dataset} in {data_dir}, once")
        with open(os.devnull, "w") as nowhere:  # it would speak of a download
            return _prepare(dataset, data_dir, output=nowhere)
    names = tfds.list_builders(with_community_datasets=False)  # those need the network
    if dataset.name not in names:
        raise InputError(
            f"{dataset.name}: no such TFDS dataset.{nearest(dataset.name, [*ours, *names])}"
            f" {instead}"
        )
    if not download:
        raise InputError(
            f"{dataset}: is not prepared in {where}, and making it needs the network: add"
            f" {flag}download, or give {flag}data_dir"
        )
    return _prepare(dataset, data_dir, output=sys.stderr)


def import_tfds(instead: str = ""):
    """Returns the package TFDS. Raises InputError where it is not installed."""
    try:
        import tensorflow_datasets as tfds

        # TFDS only logs what it cannot import itself; this fails then.
        from tensorflow_datasets.core import read_only_builder  # noqa: F401
    except ImportError:
        raise InputError(
            "a TFDS dataset needs `pip install tensorflow-datasets array-record"
            f" importlib_resources`. {instead}"
        ) from None
    return tfds


def features_of(builder: "tfds.core.DatasetBuilder") -> dict[str, object]:
    """Returns the features of an example by name."""
    features: Any = builder.info.features or {}
    return dict(features.items())


def open_data_source(
    builder: "tfds.core.DatasetBuilder", split: str, decoders: Mapping[str, object] | None = None
) -> Sequence[Any]:
    """Returns the examples of a split in random access, without TensorFlow."""
    try:
        return builder.as_data_source(split, decoders=decoders)  # pyright: ignore[reportCallIssue]
    except NotImplementedError:
        raise InputError(
            f"{builder.info.full_name}: was prepared in a format without random access; prepare it"
            " again with file_format='array_record'"
        ) from None
    except ValueError as error:  # of a split that is not there, or not well written
        raise InputError(f"{builder.info.full_name}: {error}") from None


def _prepare(dataset: TfdsName, data_dir: str | None, output: TextIO) -> "tfds.core.DatasetBuilder":
    """Makes the dataset; TFDS writes its lines to `output`, and its bars only to a terminal."""
    tfds = import_tfds()
    # TFDS writes to a temporary folder and renames it; two at once would make it twice.
    lock = cache_dir() / "locks" / f"tfds-{dataset.name}"
    if not output.isatty():
        tfds.disable_progress_bar()
    with only_one_process(lock), redirect_stdout(output):
        try:
            builder = tfds.builder(str(dataset), data_dir=data_dir, file_format="array_record")
            builder.download_and_prepare()
        # An AssertionError is how TFDS says that there is no such version.
        except (OSError, ImportError, ValueError, NotImplementedError, AssertionError) as error:
            raise InputError(
                f"{dataset}: TFDS could not make it ({type(error).__name__}: {error})"
            ) from error
    return builder
