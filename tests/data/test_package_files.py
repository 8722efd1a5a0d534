"""Files of packages are found without importing them, and taken only if they are the right ones."""

import hashlib
import sys
from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.package_files import HOW_TO_INSTALL, package_file, package_folder

CONTENT = b"1,2,3\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a package that has a file and must not be imported."""
    folder = tmp_path / "made_up_pictures"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('imported')\n")
    (folder / "data" / "digits.csv").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_a_file_is_read_and_its_package_is_not_imported(pictures: Path):
    assert package_folder("made_up_pictures", "") == pictures
    assert package_file("made_up_pictures/data/digits.csv", SHA256) == CONTENT
    assert "made_up_pictures" not in sys.modules


@pytest.mark.parametrize("content", [b"1,2,4\n", None])
def test_another_file_or_none_is_refused(pictures: Path, content: bytes | None):
    file = pictures / "data" / "digits.csv"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(InputError, match=r"digits\.csv: is missing or not the file that"):
        package_file("made_up_pictures/data/digits.csv", SHA256)


def test_a_package_that_is_not_there_is_named_with_what_installs_it():
    with pytest.raises(InputError, match="needs files of the package no_such_package: do so"):
        package_folder("no_such_package", "do so")
    with pytest.raises(InputError) as error:
        package_file("no_such_package/a.csv", SHA256)
    assert str(error.value).endswith(f"install the extra vision, {HOW_TO_INSTALL}")
