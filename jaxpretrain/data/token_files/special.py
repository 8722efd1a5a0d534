"""Special tokens of a tokenizer, checked against the files that transformers keeps beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import read_object
from jaxpretrain.data.token_files.tokenizer import special_tokens

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
    told_end, told_start = token_in(config, "eos_token"), token_in(config, "bos_token")
    if told_end is not None and told_end != eos_token:
        notes.append(
            f"note: {folder / CONFIG} ends texts with {told_end!r}; documents end with"
            f" {eos_token!r} here (--eos_token)"
        )
    if config.get("add_bos_token") and told_start is not None and told_start != bos_token:
        begin = f"with {bos_token!r}" if bos_token else "without one"
        notes.append(
            f"note: {folder / CONFIG} begins texts with {told_start!r}; documents begin {begin}"
            " here (--bos_token)"
        )
    if config.get("chat_template") or (folder / TEMPLATE).is_file():
        others = [t for t in special_tokens(tokenizer_json) if t not in (eos_token, bos_token)]
        some = ", ".join(map(repr, others[:6])) + (", ..." if len(others) > 6 else "")
        notes.append(
            f"note: {folder} has a chat template; documents that spell its tokens"
            f" ({some or 'none'}) spell them as text"
        )
    return notes


def _added(tokenizer_json: str) -> list[dict[str, Any]]:
    return json.loads(tokenizer_json).get("added_tokens") or []
