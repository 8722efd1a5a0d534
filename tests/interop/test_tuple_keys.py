import base64
import os
import pickle
from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.interop.tuple_keys import decode_key


def _encoded(value: object, protocol: int = pickle.DEFAULT_PROTOCOL) -> str:
    return base64.urlsafe_b64encode(pickle.dumps(value, protocol)).decode()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "key",
    [
        (("transformer.wte.weight",), False),
        (("state", "transformer.wte.weight", "exp_avg"), False),
        (("state", 7, "step", "step"), True),
        ((), False),
        (("ü" * 300, 70000, -1), True),
    ],
)
def test_what_pickle_writes_is_read(key: object, protocol: int):
    assert decode_key(_encoded(key, protocol), "file") == key


class _Executes:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize(
    "key",
    [
        _encoded(((_Executes(),), False)),
        _encoded((["a"], False)),
        _encoded("transformer"),
        _encoded((("a",), "b")),
        _encoded((("a",), False))[:12],
        "transformer.wte.weight",
        "",
    ],
)
def test_anything_else_is_refused_and_not_run(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"file: the key .* was not read"):
        decode_key(key, "file")
    assert not list(tmp_path.iterdir())
