"""The keys of OLMo's safetensors files: base64 of a pickled tuple, read without unpickling.

A pickle is a program, and running one from a file is running the file. What OLMo writes pushes
strings, whole numbers and booleans and makes tuples of them, so only that is understood here.
"""

import base64
import binascii
import pickletools
from typing import Any

from jaxpretrain.config.errors import InputError

_MARK = object()

_PUSHES = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "LONG1"}
_CONSTANTS = {"NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": _MARK}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NOTHING = {"PROTO", "FRAME", "STOP"}


def decode_key(key: str, where: str) -> tuple[tuple[str | int, ...], bool]:
    """Returns (path through nested dicts, true if the value is a pickle) of a key.

    Raises InputError, which names the file by `where`, for any other key.
    """
    try:
        value = _read(base64.urlsafe_b64decode(key))
        path, is_pickled = value
        if not isinstance(path, tuple) or not isinstance(is_pickled, bool):
            raise ValueError("it is not (path, is_pickled)")
    except (ValueError, TypeError, IndexError, KeyError, binascii.Error) as error:
        raise InputError(f"{where}: the key {key[:40]}... was not read: {error}") from error
    return path, is_pickled


def _read(content: bytes) -> Any:
    """Returns the value of a pickle of nested tuples of strings, numbers and booleans."""
    stack: list[object] = []
    memo: dict[object, object] = {}
    for opcode, argument, _ in pickletools.genops(content):
        name = opcode.name
        if name in _PUSHES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            count = _TUPLES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            start = len(stack) - 1 - stack[::-1].index(_MARK)
            stack[start:] = [tuple(stack[start + 1 :])]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name not in _NOTHING:
            raise ValueError(f"it is a pickle with {name}, which is never run")
    (value,) = stack
    return value
