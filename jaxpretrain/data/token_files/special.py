"""Special tokens of a tokenizer: those that texts begin with, and what lies beside its file."""

import json
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import read_object
from jaxpretrain.data.token_files.tokenizer import parsed, special_id, special_tokens

CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"


def read_config(folder: Path) -> dict[str, Any]:
    """Returns what a folder says about its tokenizer; {} where it says nothing."""
    path = folder / CONFIG
    return read_object(path) if path.is_file() else {}


def token_in(config: Mapping[str, Any], name: str) -> str | None:
    """Returns the special token with a name such as `eos_token`; None where none is told."""
    value = config.get(name)
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def begin_ids(tokenizer_json: str, path: Path) -> list[int]:
    """Returns the special tokens that the tokenizer's own template puts before a text.

    `path` is its file, for the message. InputError: it is no tokenizer.
    """
    framed = _framed(tokenizer_json, path)
    return [number for number, _ in takewhile(lambda token: token[1], framed)]


def beginning_with(tokenizer_json: str, bos_token: str | None) -> str:
    """Returns the tokenizer with a template that begins texts as its documents begin.

    Whoever encodes a prompt with it, here or in another program, begins it as in training. None:
    with no token. A file that says so already stays as it is; no template ends a text.
    """
    first = [] if bos_token is None else [special_id(tokenizer_json, bos_token, "begin")]
    if [number for number, special in _framed(tokenizer_json) if special] == first:
        return tokenizer_json
    begin = [{"SpecialToken": {"id": bos_token, "type_id": 0}} for _ in first]
    one, other = ({"Sequence": {"id": name, "type_id": n}} for n, name in enumerate("AB"))
    template = {
        "type": "TemplateProcessing",
        "single": [*begin, one],
        "pair": [*begin, one, other],
        "special_tokens": {
            token: {"id": token, "ids": first, "tokens": [token]} for token in [bos_token] if token
        },
    }
    return json.dumps(json.loads(tokenizer_json) | {"post_processor": template}, ensure_ascii=False)


def _framed(tokenizer_json: str, path: Path | str = "the tokenizer") -> list[tuple[int, bool]]:
    """Returns the ids of a short text in the tokenizer's template, and which of them are of it."""
    encoding = parsed(tokenizer_json, path).encode("a")
    return [(n, bool(m)) for n, m in zip(encoding.ids, encoding.special_tokens_mask, strict=True)]


def check_special_tokens(
    tokenizer_json: str, folder: Path, eos_token: str, bos_token: str | None
) -> list[str]:
    """Returns notes about tokens that documents get otherwise than the tokenizer's folder says.

    Raises InputError where the two files of a folder give a token different ids.
    """
    config, notes = read_config(folder), []
    ids = {entry["content"]: entry["id"] for entry in _added(tokenizer_json)}
    decoder = config.get("added_tokens_decoder")
    for number, entry in decoder.items() if isinstance(decoder, dict) else ():
        token = entry.get("content") if isinstance(entry, dict) else None
        if token in ids and str(ids[token]) != number:
            raise InputError(
                f"{folder}: {token!r} is id {ids[token]} in tokenizer.json and {number} in {CONFIG}"
            )
    told_end = token_in(config, "eos_token")
    told_start = _told_start(tokenizer_json, config, folder / "tokenizer.json")
    if told_end is not None and told_end != eos_token:
        notes.append(
            f"note: {folder / CONFIG} ends texts with {told_end!r}; documents end with"
            f" {eos_token!r} here (--eos_token)"
        )
    if told_start not in (None, bos_token):
        begin = f"with {bos_token!r}" if bos_token else "without one"
        notes.append(
            f"note: the tokenizer in {folder} begins texts with {told_start!r}; documents begin"
            f" {begin} here (--bos_token)"
        )
    if config.get("chat_template") or (folder / TEMPLATE).is_file():
        others = [t for t in special_tokens(tokenizer_json) if t not in (eos_token, bos_token)]
        some = ", ".join(map(repr, others[:6])) + (", ..." if len(others) > 6 else "")
        notes.append(
            f"note: {folder} has a chat template; documents that spell its tokens"
            f" ({some or 'none'}) spell them as text"
        )
    return notes


def _told_start(tokenizer_json: str, config: Mapping[str, Any], path: Path) -> str | None:
    """Returns the token that the tokenizer's files begin texts with; None where they use none."""
    if config.get("add_bos_token") and (told := token_in(config, "bos_token")) is not None:
        return told
    by_id = {number: token for token, number in special_tokens(tokenizer_json).items()}
    return next((by_id.get(number) for number in begin_ids(tokenizer_json, path)), None)


def _added(tokenizer_json: str) -> list[dict[str, Any]]:
    return json.loads(tokenizer_json).get("added_tokens") or []
