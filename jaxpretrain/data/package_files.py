"""Data files that come with Python packages, found without importing them, checked by hash."""

import hashlib
import importlib.util
from pathlib import Path

from jaxpretrain.config.errors import InputError, install


def package_folder(package: str, if_missing: str) -> Path:
    """Returns the folder of a package, which is not imported.

    Raises InputError, with the text `if_missing`, where it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(if_missing)
    return Path(spec.submodule_search_locations[0])


def package_file(path: str, sha256: str) -> bytes:
    """Returns the content of `package/folder/file`; InputError where it is missing or another."""
    package, _, inside = path.partition("/")
    missing = f"the dataset needs files of the package {package}: {install('vision')}"
    file = package_folder(package, missing) / inside
    if not file.is_file() or hashlib.sha256(content := file.read_bytes()).hexdigest() != sha256:
        raise InputError(
            f"{file}: is missing or not the file that the dataset is made of; install another"
            f" version of the package {package}"
        )
    return content
