import sys
from pathlib import Path
from typing import Any

import pytest

from jaxpretrain.config import errors
from jaxpretrain.config.errors import InputError
from jaxpretrain.data.prepare.columnar import import_pyarrow, read_rows

pa = pytest.importorskip("pyarrow")

TABLE = {
    "id": list(range(1000)),
    "text": [None if number == 7 else f"text é {number}" for number in range(1000)],
    "language": ["en", "de"] * 500,
}


def _write(path: Path, table: Any) -> Path:
    from pyarrow import feather, ipc, parquet

    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=300)
    elif path.suffix == ".feather":
        feather.write_feather(table, str(path))
    else:
        new = ipc.new_stream if "stream" in path.name else ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=300)
    return path


NAMES = ["a.parquet", "a.arrow", "stream.arrow", "a.feather"]


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_the_columns_that_are_asked_for(tmp_path: Path, name: str):
    path = _write(tmp_path / name, pa.table(TABLE))
    rows = list(read_rows(path, dict.fromkeys(("text", "id"), "--text_key")))
    assert [row["id"] for row in rows] == TABLE["id"]
    assert rows[3] == {"text": "text é 3".encode(), "id": 3}
    assert rows[7] == {"text": "", "id": 7}  # null


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_column_names_the_nearest(tmp_path: Path, name: str):
    path = _write(tmp_path / name, pa.table(TABLE))
    with pytest.raises(
        InputError, match=r"no column 'texts' \(columns: id, text, l.*; set --text_key\. .*'text'\?"
    ):
        next(read_rows(path, {"texts": "--text_key"}))


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary", "binary"])
def test_texts_of_every_type_are_bytes(tmp_path: Path, kind: str):
    column = pa.array(["one", "two é", "one"])
    types = {"large_string": pa.large_string(), "binary": pa.binary()}
    column = column.dictionary_encode() if kind == "dictionary" else column
    column = column.cast(types[kind]) if kind in types else column
    path = _write(tmp_path / "a.parquet", pa.table({"text": column}))
    texts = [row["text"] for row in read_rows(path, {"text": "--text_key"})]
    assert texts == [b"one", "two é".encode(), b"one"]


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_one_line(tmp_path: Path, name: str):
    path = _write(tmp_path / name, pa.table(TABLE))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=f"{name}: is damaged"):
        list(read_rows(path, {"text": "--text_key"}))


def test_without_pyarrow_the_line_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr(errors, "extras", lambda: {"data": ["pyarrow>=26"]})
    import_pyarrow.cache_clear()
    with pytest.raises(InputError, match="parquet and Arrow files need pyarrow: pip install 'pyar"):
        next(read_rows(tmp_path / "a.parquet", {"text": "--text_key"}))
