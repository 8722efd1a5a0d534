"""Byte-level BPE tokenizers, in the `tokenizer.json` format that OLMo uses.

Training needs the number of bytes of each token, which is read from the JSON alone; the package
`tokenizers` is imported only to train one or to encode text.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import checked, read_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer

USUAL_END = "<|endoftext|>"
"""The token that ends documents in OLMo's tokenizers."""
TRAINING_BYTES = 2**30
"""The most text that a tokenizer is trained on: the first GiB of the train split."""

_NOT_ONE = "it is not a tokenizer.json of the tokenizers package"
_MOST_IDS = 2**24
"""Ids lie below this: a file with larger ones is damaged, and tables of them would fill memory."""


@dataclass(frozen=True)
class _Added:
    """An added token in a `tokenizer.json`."""

    id: int
    content: str
    special: bool


@dataclass(frozen=True)
class _Model:
    """The model of a `tokenizer.json`, without its vocabulary."""

    dropout: float | None = None


@dataclass(frozen=True)
class _TokenizerFile:
    """The part of a `tokenizer.json` that is read, without the vocabulary, which may be large."""

    model: _Model
    added_tokens: tuple[_Added, ...] | None = None


def train_bpe(
    texts: Iterable[str], vocab_size: int, eos_token: str, bos_token: str | None = None
) -> str:
    """Returns the `tokenizer.json` of a byte-level BPE trained on texts; the same each time.

    NFC normalisation and byte-level pieces, as in OLMo's. Small corpora may give fewer ids than
    `vocab_size`, which includes the special tokens and the 256 bytes.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if vocab_size < 257:
        raise InputError(f"vocab_size is {vocab_size}, but 256 bytes and the EOS need 257")
    special = list(dict.fromkeys([eos_token, *([bos_token] if bos_token else [])]))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first_bytes(texts, TRAINING_BYTES), trainer)
    return tokenizer.to_str(pretty=False)


def _first_bytes(texts: Iterable[str], limit: int) -> Iterator[str]:
    seen = 0
    for text in texts:
        yield text
        seen += len(text)
        if seen >= limit:
            return


def read_tokenizer(path: Path) -> str:
    """Returns the text of a `tokenizer.json`, or of the one in a folder; InputError without one."""
    if os.path.isfile(inside := path / "tokenizer.json"):
        path = inside
    if not os.path.exists(path):  # unlike Path's, true or false of any name
        raise InputError(f"{path}: no such tokenizer file")
    raw = read_object(path, _NOT_ONE)
    if not isinstance(raw.get("model"), dict):
        raise InputError(f"{path}: has no model; {_NOT_ONE}")
    parts = checked(_TokenizerFile, raw, path)
    _check_vocabulary(raw, path)
    if dropout := parts.model.dropout:
        raise InputError(f"{path}: BPE dropout {dropout} would give other tokens each time")
    return path.read_text(encoding="utf-8-sig")


def _check_vocabulary(raw: dict[str, Any], path: Path) -> None:
    """Raises InputError unless pieces are texts and their ids are small whole numbers."""
    vocab = raw["model"].get("vocab", {})
    if isinstance(vocab, dict):
        pieces, ids = list(vocab), list(vocab.values())
    elif isinstance(vocab, list) and all(isinstance(i, list) and len(i) == 2 for i in vocab):
        pieces, ids = [piece for piece, _ in vocab], []
    else:
        raise InputError(f"{path}: model.vocab: expected an object, or a list of pairs")
    ids += [entry["id"] for entry in raw.get("added_tokens") or []]
    if not {*map(type, pieces)} <= {str}:
        raise InputError(f"{path}: model.vocab: a piece is not a text")
    if not ids and not pieces:
        raise InputError(f"{path}: model.vocab: has no tokens")
    are_whole = {*map(type, ids)} <= {int}
    if not are_whole or not 0 <= min(ids, default=0) <= max(ids, default=0) < _MOST_IDS:
        raise InputError(f"{path}: model.vocab: an id is not a whole number below {_MOST_IDS:,}")


def parsed(tokenizer_json: str, path: Path | str = "the tokenizer") -> "Tokenizer":
    """Returns the tokenizer just as its file has it; InputError where it is none."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # the package raises plain Exception for a bad file
        raise InputError(f"{path}: the tokenizers package cannot read it: {error}") from None


def encoder(tokenizer_json: str, path: Path | str = "the tokenizer") -> "Tokenizer":
    """Returns the tokenizer of documents, prompts and tasks: it encodes the text alone, all of it.

    Text that spells a special token is encoded as text, so an EOS is always the end of a document.
    Truncation, padding and special tokens around a text, which the file may ask for, are off.
    """
    from tokenizers import processors

    tokenizer = parsed(tokenizer_json, path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.post_processor = processors.Sequence([])
    tokenizer.encode_special_tokens = True
    return tokenizer


def special_id(tokenizer_json: str, token: str, use: str = "end") -> int:
    """Returns the id of a token that is to `end` or `begin` documents; InputError without one."""
    added, vocab = _ids(json.loads(tokenizer_json))
    ids = vocab | {entry["content"]: entry["id"] for entry in added}
    if token in ids:
        return ids[token]
    specials = ", ".join(repr(entry["content"]) for entry in added if entry["special"])
    raise InputError(
        f"the tokenizer has no token {token!r} to {use} documents with; its special tokens are"
        f" {specials or 'none'} (set --{'eos' if use == 'end' else 'bos'}_token)"
    )


def special_tokens(tokenizer_json: str) -> dict[str, int]:
    """Returns the special tokens with their ids."""
    added = json.loads(tokenizer_json).get("added_tokens") or []
    return {entry["content"]: entry["id"] for entry in added if entry["special"]}


def end_id(tokenizer_json: str) -> int | None:
    """Returns the id that ends documents: <|endoftext|> or the only special; None if unknown."""
    special = special_tokens(tokenizer_json)
    only = next(iter(special.values())) if len(special) == 1 else None
    return special.get(USUAL_END, only)


def vocabulary_size(tokenizer_json: str) -> int:
    """Returns the size of the vocabulary: one more than the largest id."""
    added, vocab = _ids(json.loads(tokenizer_json))
    return 1 + max([*vocab.values(), *(entry["id"] for entry in added)])


def token_texts(tokenizer_json: str) -> list[bytes] | None:
    """Returns the bytes of text of each id, in UTF-8; None where it is not byte-level.

    Special tokens stand for no text. Joined over a document's ids they are its normalised text.
    """
    raw = json.loads(tokenizer_json)
    if not _mentions(raw.get("pre_tokenizer"), "ByteLevel"):
        return None
    added, vocab = _ids(raw)
    texts = [b""] * vocabulary_size(tokenizer_json)
    to_byte = _byte_of_character()
    for piece, number in vocab.items():
        try:
            texts[number] = bytes(map(to_byte.__getitem__, piece))
        except KeyError:  # not of bytes: an added token, which some files list here too
            texts[number] = piece.encode()
    for entry in added:
        texts[entry["id"]] = b"" if entry["special"] else entry["content"].encode()
    return texts


def token_bytes(tokenizer_json: str) -> np.ndarray | None:
    """Returns the number of bytes of text of each id, int32 [vocab]; None if not byte-level.

    Their sum over a document's ids is exact, and so bits per byte are exact.
    """
    texts = token_texts(tokenizer_json)
    return None if texts is None else np.array([len(text) for text in texts], np.int32)


def _ids(raw: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Returns added tokens and the model's vocabulary, which is a list of pairs in Unigram."""
    vocab = raw["model"].get("vocab", {})
    if isinstance(vocab, list):
        vocab = {piece: number for number, (piece, _) in enumerate(vocab)}
    return raw.get("added_tokens") or [], vocab


def _mentions(part: object, kind: str) -> bool:
    """Returns true where a part of the pipeline, or one inside its sequence, is of a kind."""
    if isinstance(part, dict):
        return part.get("type") == kind or any(_mentions(value, kind) for value in part.values())
    return isinstance(part, list) and any(_mentions(value, kind) for value in part)


@cache
def _byte_of_character() -> dict[str, int]:
    """Returns the byte of each of GPT-2's 256 characters: printable Latin-1 stands for itself."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)).difference(printable))
    shifted = {chr(256 + number): byte for number, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | shifted
