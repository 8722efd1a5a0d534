import pytest

from jaxpretrain.inspection import machine


def test_extras_tell_what_they_lack(monkeypatch: pytest.MonkeyPatch):
    needed = ["numpy>=2", "tiny; extra == 'vision'", "jax[tpu]; extra == 'tpu'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: needed)
    monkeypatch.setattr(machine, "_version", lambda name: "1" if name == "tiny" else "missing")
    assert machine._extras() == {"vision": "installed", "tpu": "lacks libtpu"}
