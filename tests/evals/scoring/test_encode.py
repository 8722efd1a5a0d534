from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.token_files.special import beginning_with
from jaxpretrain.evals.scoring.encode import Request, TextEncoder, encode_task
from jaxpretrain.evals.tasks.task import Choice, Item, Task


def _task(*choices: Choice) -> Task:
    return Task("t", "acc", (Item("q", choices),))


def test_context_and_continuation_are_encoded_by_themselves(encode: TextEncoder):
    """The ids of a text need not be those of its parts."""
    _, (request,), none = encode_task(_task(Choice("Quest", "ion")), encode, 48)
    ids = encode(["Quest", "ion", "Question"])
    assert request == Request(ids["Quest"], ids["ion"]) and none == []
    assert [*request.context, *request.continuation] != ids["Question"]


def test_unconditional_requests_are_there_where_all_choices_have_one(encode: TextEncoder):
    choices = Choice("a", " b", "c"), Choice("a", " d", "c")
    *_, unconditional = encode_task(_task(*choices), encode, 48)
    ids = encode([" b", " d", "c"])
    assert unconditional == [Request(ids["c"], ids[" b"]), Request(ids["c"], ids[" d"])]
    assert encode_task(_task(choices[0], Choice("a", " d")), encode, 48)[2] == []


def test_a_text_without_tokens_is_named(encode: TextEncoder):
    with pytest.raises(InputError, match="task t, item q: the continuation '' has no tokens"):
        encode_task(_task(Choice("a", " b"), Choice("a", "")), encode, 48)
    with pytest.raises(InputError, match="task t, item q: the context '' has no tokens"):
        encode_task(_task(Choice("", " b")), encode, 48)


def test_items_with_a_continuation_beyond_the_context_are_left_out(encode: TextEncoder):
    """One as long as the context fits, after the last token of what stands before it."""
    size = len(encode([" b" * 9])[" b" * 9])
    short, long = Choice("a", " b"), Choice("a", " b" * 9)
    task = Task("t", "acc", (Item("p", (short, long)), Item("q", (short, short))))
    assert encode_task(task, encode, size)[0] == task
    fitting, requests, _ = encode_task(task, encode, size - 1)
    assert [item.name for item in fitting.items] == ["q"] and len(requests) == 2
    with pytest.raises(InputError, match="task t: every item has .* context of 2; .* has"):
        encode_task(_task(long), encode, 2)


def test_contexts_begin_as_documents_of_the_tokenizer_do(tokenizer: Path, tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    path.write_text(beginning_with(tokenizer.read_text(), "<|end|>"))
    encode = TextEncoder(path, 290)
    (first,) = encode.begin_ids
    ids = encode(["a", " b", "c"])
    _, conditional, unconditional = encode_task(_task(Choice("a", " b", "c")), encode, 48)
    assert conditional == [Request([first, *ids["a"]], ids[" b"])]
    assert unconditional == [Request([first, *ids["c"]], ids[" b"])]


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tokenizer: Path):
    with pytest.raises(InputError, match="does not fit the model: it has .* vocabulary 260"):
        TextEncoder(tokenizer, 260)
