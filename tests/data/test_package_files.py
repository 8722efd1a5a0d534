import hashlib
from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.package_files import package_file, package_folder


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that fails when it is imported."""
    folder = tmp_path / "brittle_pictures"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "a.bin").write_bytes(b"content")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_a_file_is_found_without_an_import(package: Path):
    sha256 = hashlib.sha256(b"content").hexdigest()
    assert package_folder("brittle_pictures", "install it") == package
    assert package_file("brittle_pictures/a.bin", sha256) == b"content"


def test_another_file_or_none_is_an_error(package: Path):
    for name in ("a.bin", "absent.bin"):
        with pytest.raises(InputError, match="install another version of the package brittle"):
            package_file(f"brittle_pictures/{name}", "0" * 64)


def test_a_missing_package_says_how_to_get_it():
    with pytest.raises(InputError, match="^install absent pictures$"):
        package_folder("absent_pictures", "install absent pictures")
    with pytest.raises(
        InputError, match="needs files of the package absent_pictures: pip install .*pillow"
    ):
        package_file("absent_pictures/a.bin", "0" * 64)
