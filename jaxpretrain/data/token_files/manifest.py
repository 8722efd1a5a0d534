"""`manifest.json`: the contents of a directory of token files, with their checksums.

The manifest is written last, so a directory that has one is complete. Token files are OLMo's:
headerless little-endian token ids, in spite of the name `.npy`, an EOS after every document.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import from_dict, read_object
from jaxpretrain.storage.files import write_atomically

FORMAT_VERSION = 1
MANIFEST = "manifest.json"

Dtype = Literal["uint16", "uint32"]


@dataclass(frozen=True)
class File:
    """One token file."""

    name: str
    """Path relative to the directory of the manifest."""
    num_tokens: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """One split of the corpus."""

    num_documents: int
    num_tokens: int
    """Tokens in all files, the EOS of each document included."""
    num_bytes: int
    """UTF-8 bytes of the documents' text, before any normalisation."""
    content_sha256: str
    """SHA-256 over the SHA-256 of every document's text: the same whatever the tokenizer."""
    files: tuple[File, ...]


@dataclass(frozen=True)
class TokenizerFile:
    """The tokenizer of the token ids."""

    file: str
    """Path relative to the directory of the manifest."""
    sha256: str
    byte_exact: bool
    """True where in every document the bytes of its tokens add up to those of its text."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `manifest.json`."""

    format_version: int = FORMAT_VERSION
    name: str
    """Short name of the dataset; its evaluation appears as `eval/<name>/...`."""
    tokenizer: TokenizerFile
    vocab_size: int
    eos_id: int
    dtype: Dtype
    spec_sha256: str
    """Hash of everything that the files were made from: corpus, tokenizer and options."""
    created_from: dict[str, Any]
    """The corpus, the options and the versions of the libraries, for people to read."""
    splits: dict[str, Split]


def save_manifest(manifest: Manifest, directory: Path) -> None:
    """Writes `manifest.json`, which declares `directory` complete."""
    write_atomically(directory / MANIFEST, json.dumps(asdict(manifest), indent=1) + "\n")


def load_manifest(directory: Path) -> Manifest:
    """Reads the manifest of a directory and checks it, but not its files (see `TokenFiles`).

    Raises InputError where it is missing, not JSON, of another version, or contradicts itself.
    """
    path = directory / MANIFEST
    advice = "prepare it again" if path.exists() else "python -m jaxpretrain.prepare makes it"
    raw = read_object(path, advice)
    version = raw.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path}: format_version is {version}, this program reads {FORMAT_VERSION};"
            " prepare the data again"
        )
    manifest = from_dict(Manifest, raw, f"{path}:")
    _check(manifest, path)
    return manifest


def _check(manifest: Manifest, path: Path) -> None:
    itemsize = {"uint16": 2, "uint32": 4}[manifest.dtype]
    if manifest.dtype == "uint16" and manifest.vocab_size > 2**16:
        raise InputError(f"{path}: uint16 cannot hold the ids of {manifest.vocab_size} tokens")
    if not 0 <= manifest.eos_id < manifest.vocab_size:
        raise InputError(f"{path}: eos_id {manifest.eos_id} is outside the vocabulary")
    for name, split in manifest.splits.items():
        for file in split.files:
            if file.num_bytes != file.num_tokens * itemsize:
                raise InputError(
                    f"{path}: {file.name} cannot hold {file.num_tokens} {manifest.dtype} tokens"
                    f" in {file.num_bytes} bytes"
                )
        if sum(file.num_tokens for file in split.files) != split.num_tokens:
            raise InputError(f"{path}: the files of split {name} do not add up to its tokens")
