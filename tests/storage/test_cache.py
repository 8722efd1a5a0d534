from pathlib import Path

import pytest

from jaxpretrain.storage.cache import cache_dir


def test_the_environment_chooses_the_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("JAXPRETRAIN_CACHE", str(tmp_path / "here"))
    assert cache_dir() == tmp_path / "here"


def test_the_default_lies_in_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("JAXPRETRAIN_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "jaxpretrain"
