import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.token_files.special import begin_ids, beginning_with, check_special_tokens
from jaxpretrain.data.token_files.tokenizer import encoder, train_bpe


@pytest.fixture(scope="module")
def tokenizer() -> str:
    return train_bpe(["some text"], 300, "</s>", "<s>")


def _config(folder: Path, **config: object) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_a_folder_that_agrees_or_says_nothing_gives_no_notes(tmp_path: Path, tokenizer: str):
    assert check_special_tokens(tokenizer, tmp_path, "</s>", None) == []
    _config(tmp_path, eos_token={"content": "</s>"}, bos_token="<s>", add_bos_token=True)
    assert check_special_tokens(tokenizer, tmp_path, "</s>", "<s>") == []


def test_other_tokens_at_the_ends_and_a_chat_template_are_told(tmp_path: Path, tokenizer: str):
    _config(tmp_path, eos_token="<|im_end|>", bos_token="<s>", add_bos_token=True)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    end, start, chat = check_special_tokens(tokenizer, tmp_path, "</s>", None)
    assert "ends texts with '<|im_end|>'; documents end with '</s>'" in end
    assert "begins texts with '<s>'; documents begin without one" in start
    assert "has a chat template; documents that spell its tokens ('<s>')" in chat


def test_two_ids_of_a_token_are_an_error(tmp_path: Path, tokenizer: str):
    _config(tmp_path, added_tokens_decoder={"0": {"content": "<s>"}})
    with pytest.raises(InputError, match="'<s>' is id 1 in tokenizer.json and 0 in tokenizer_conf"):
        check_special_tokens(tokenizer, tmp_path, "</s>", None)


@pytest.mark.parametrize("bos_token, begin", [(None, []), ("<s>", [1])])
def test_a_template_begins_texts_as_documents_do_and_ends_none(
    tokenizer: str, bos_token: str | None, begin: list[int]
):
    """Whatever the file that was given says, and for other programs, too."""
    framed = Tokenizer.from_str(tokenizer)
    special = [("<s>", 1), ("</s>", 0)]
    framed.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=special)
    assert begin_ids(framed.to_str(), Path("t.json")) == [1]
    text = encoder(tokenizer).encode("some text").ids
    for given in (tokenizer, framed.to_str()):
        made = beginning_with(given, bos_token)
        assert begin_ids(made, Path("t.json")) == begin
        assert Tokenizer.from_str(made).encode("some text").ids == [*begin, *text]
        assert Tokenizer.from_str(made).encode("some", " text").ids[: len(begin)] == begin
        assert beginning_with(made, bos_token) == made
    assert beginning_with(tokenizer, None) == tokenizer


def test_a_template_that_begins_texts_otherwise_is_told(tmp_path: Path, tokenizer: str):
    (note,) = check_special_tokens(beginning_with(tokenizer, "<s>"), tmp_path, "</s>", None)
    assert "begins texts with '<s>'; documents begin without one here (--bos_token)" in note
