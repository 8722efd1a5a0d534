"""`manifest.json`: what a directory of token files holds, and how to check it.

The manifest is written last, so a directory that has one is complete. Token files are OLMo's:
headerless little-endian token ids, in spite of the name `.npy`, an EOS after every document.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.files import write_atomically

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
    """Size of the file."""
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
    """The tokenizer that the token ids are of."""

    file: str
    """Path relative to the directory of the manifest."""
    sha256: str
    byte_exact: bool
    """Whether, in every document, the bytes its tokens stand for add up to its text's."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that `manifest.json` says."""

    format_version: int = FORMAT_VERSION
    name: str
    """Short name of the dataset; its evaluation appears as `eval/<name>/...`."""
    tokenizer: TokenizerFile
    vocab_size: int
    eos_id: int
    dtype: Dtype
    spec_sha256: str
    """Identifies what the files were made from: corpus, tokenizer and options."""
    created_from: dict[str, Any]
    """The corpus, the options and the versions of the libraries, for people to read."""
    splits: dict[str, Split]


def save_manifest(manifest: Manifest, directory: Path) -> None:
    """Writes `manifest.json`, which declares `directory` complete."""
    write_atomically(directory / MANIFEST, json.dumps(asdict(manifest), indent=1) + "\n")


def load_manifest(directory: Path) -> Manifest:
    """The checked manifest of `directory`; its files are not looked at (see `TokenFiles`).

    Raises InputError when it is missing, not JSON, of another version, or contradicts itself.
    """
    path = directory / MANIFEST
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; python -m jaxpretrain.prepare makes it") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); prepare it again") from None
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path}: format_version is {version}, this program reads {FORMAT_VERSION};"
            " prepare the data again"
        )
    try:
        manifest = _manifest(raw)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: a field is missing or wrong ({error})") from None
    _check(manifest, path)
    return manifest


def _manifest(raw: dict[str, Any]) -> Manifest:
    splits = {
        name: Split(**{**split, "files": tuple(File(**file) for file in split["files"])})
        for name, split in raw["splits"].items()
    }
    return Manifest(**{**raw, "tokenizer": TokenizerFile(**raw["tokenizer"]), "splits": splits})


def _check(manifest: Manifest, path: Path) -> None:
    itemsize = {"uint16": 2, "uint32": 4}.get(manifest.dtype)
    if itemsize is None:
        raise InputError(f"{path}: dtype is {manifest.dtype!r}, not uint16 or uint32")
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
