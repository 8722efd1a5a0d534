import bz2
import gzip
import lzma
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.prepare.compressed import opened

CONTENT = b"".join(
    b"line %d\n" % number for number in np.random.default_rng(0).integers(0, 2**40, 40_000)
)


def _zst(content: bytes) -> bytes:
    return pytest.importorskip("zstandard").compress(content)


def _lz4(content: bytes) -> bytes:
    arrow = pytest.importorskip("pyarrow")
    sink = arrow.BufferOutputStream()
    with arrow.CompressedOutputStream(sink, "lz4") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


COMPRESS = [
    *[(".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress)],
    *[(".zst", _zst), (".lz4", _lz4), ("", bytes)],
]


@pytest.mark.parametrize(("suffix", "compress"), COMPRESS)
def test_content_and_lines(tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(compress(CONTENT))
    with opened(path) as file:
        assert file.read() == CONTENT
    with opened(path) as file:
        assert list(file) == CONTENT.splitlines(keepends=True)


@pytest.mark.parametrize(("suffix", "compress"), COMPRESS)
def test_concatenated_files_are_one(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(compress(CONTENT) + compress(b"") + compress(b"the end\n"))
    with opened(path) as file:
        assert file.read() == CONTENT + b"the end\n"


@pytest.mark.parametrize(("suffix", "compress"), COMPRESS[:-1])
@pytest.mark.parametrize("part", [0.01, 0.5, 0.9999])
def test_a_cut_file_is_an_error(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes], part: float
):
    path = tmp_path / f"a{suffix}"
    whole = compress(CONTENT)
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(InputError, match=f"a{suffix}: is damaged"), opened(path) as file:
        file.read()


@pytest.mark.parametrize(("suffix", "compress"), COMPRESS[:-1])
def test_a_file_of_another_kind_is_an_error(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"plain text that is not compressed")
    with pytest.raises(InputError, match=f"a{suffix}: is damaged"), opened(path) as file:
        file.read()


def test_zst_without_its_package_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "a.zst").write_bytes(b"")
    with pytest.raises(InputError, match="pip install zstandard"), opened(tmp_path / "a.zst"):
        pass
