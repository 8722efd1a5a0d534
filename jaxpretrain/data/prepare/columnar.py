"""The rows of parquet and Arrow files, a few at a time."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any

from jaxpretrain.config.errors import InputError, install, nearest

if TYPE_CHECKING:
    import pyarrow

COLUMNAR = (".parquet", ".arrow", ".feather")
"""The suffixes of files with typed columns; .arrow is the stream of `datasets` or Arrow's file."""

_BATCH_ROWS = 256


def read_rows(path: Path, columns: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yields these columns of each row; a text is its bytes, which may not be UTF-8, null is "".

    `columns` maps each to the flag that names it. Raises InputError where a column is not there,
    or the file is damaged.
    """
    pa = import_pyarrow("parquet and Arrow files")
    try:
        with path.open("rb") as file:
            for batch in _batches(pa, file, path, columns):
                cells = [_cells(pa, batch.column(name)) for name in columns]
                for row in zip(*cells, strict=True):
                    yield dict(zip(columns, row, strict=True))
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the file
            raise
        raise InputError(f"{path}: is damaged ({error})") from None


@cache
def import_pyarrow(what: str):
    """Returns the module pyarrow; InputError, about what needs it, where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{what} need pyarrow: {install('data')}") from None
    return pyarrow


def require_columns(
    place: Path | str, columns: Mapping[str, str], known: Iterable[str], what: str = "column"
) -> None:
    """Raises InputError, with the nearest name, for a column that a file or a row does not have.

    `columns` maps each to the flag that names it, `what` is what columns are called there.
    """
    names = list(known)
    for name, flag in columns.items():
        if name not in names:
            some = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise InputError(
                f"{place}: has no {what} {name!r} ({what}s: {some}); set {flag}."
                f"{nearest(name, names)}"
            )


def _batches(
    pa: ModuleType, file: IO[bytes], path: Path, columns: Mapping[str, str]
) -> "Iterator[pyarrow.RecordBatch]":
    if path.suffix.lower() == ".parquet":
        table = pa.parquet.ParquetFile(file)
        require_columns(path, columns, table.schema_arrow.names)
        yield from table.iter_batches(_BATCH_ROWS, columns=list(columns), use_threads=False)
        return
    magic = file.read(6)
    file.seek(0)
    if magic == b"ARROW1":
        reader = pa.ipc.open_file(file)
        require_columns(path, columns, reader.schema.names)
        yield from map(reader.get_batch, range(reader.num_record_batches))
    else:
        stream = pa.ipc.open_stream(file)
        require_columns(path, columns, stream.schema.names)
        yield from stream


def _cells(pa: ModuleType, column: "pyarrow.Array") -> list[Any]:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = column.cast(pa.binary() if pa.types.is_string(kind) else pa.large_binary())
    return ["" if cell is None else cell for cell in column.to_pylist()]
