from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, processors

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.prepare.documents import Document
from jaxpretrain.data.prepare.encode import encode
from jaxpretrain.evals.generation.generator import Generator
from jaxpretrain.evals.generation.token_loop import Sampling
from jaxpretrain.evals.scoring.encode import TextEncoder
from tests.evals.generation.models import SEQ_LEN, VOCAB_SIZE, make_layout, make_model, read_anew

PROMPTS = ("the union", "the", "states of the union", "un", "st", "union of")
GREEDY = Sampling(temperature=0)
DRAWN = Sampling(temperature=1.0, seed=3)


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_layers": 4, "num_kv_heads": 2, "windows": (3, None), "qk_norm": True}],
    ids=["plain", "windows"],
)
def test_greedy_takes_the_likeliest_token_at_each_step(
    changes, text_tokenizer, tokenizer_path: Path
):
    """The context of each token is only what comes before it, without any padding."""
    model = make_model(**changes)
    text_params = jax.jit(model.init)(jax.random.key(3))
    generated = Generator(model, make_layout(), tokenizer_path)(text_params, PROMPTS, 10, GREEDY)
    for prompt, ours in zip(PROMPTS, generated, strict=True):
        expected = read_anew(model, text_params, text_tokenizer.encode(prompt).ids, 10)
        assert (ours.ids, ours.ended) == (expected, "length")
        assert ours.text == text_tokenizer.decode(expected)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_text_does_not_depend_on_its_batch(
    sampling, generator, text_params, tokenizer_path: Path
):
    """In one batch with all, in small ones, and in another order of lengths."""
    together = generator(text_params, PROMPTS, 8, sampling)
    in_pairs = Generator(make_model(), make_layout(), tokenizer_path, batch_size=2)
    assert in_pairs(text_params, PROMPTS, 8, sampling) == together
    others = [*PROMPTS[:3], "the states of the union", "of", "t"]
    assert generator(text_params, others, 8, sampling)[:3] == together[:3]
    assert generator(text_params, PROMPTS[:1], 8, sampling) == together[:1]


@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"fsdp": 2, "tensor": 2}, {"replica": 2}], ids=str)
def test_every_mesh_gives_the_text_of_one_device(
    mesh, generator, text_params, tokenizer_path: Path
):
    layout = make_layout(**mesh)
    model = make_model(layout)
    placed = jax.device_put(text_params, layout.tree(model.axes(), text_params))
    ours = Generator(model, layout, tokenizer_path)
    assert ours(placed, PROMPTS, 9, DRAWN) == generator(text_params, PROMPTS, 9, DRAWN)
    stopped = ours(placed, PROMPTS, 20, DRAWN, ["e"])
    assert stopped == generator(text_params, PROMPTS, 20, DRAWN, ["e"])


def test_draws_repeat_by_their_seed(generator, text_params):
    def draw(seed: int) -> str:
        return generator(text_params, ["the"], 12, Sampling(seed=seed))[0].text

    assert draw(0) == draw(0)
    assert len({draw(seed) for seed in range(4)}) == 4


def test_draws_follow_the_models_distribution(text_tokenizer, text_params, tokenizer_path: Path):
    """The frequencies of one drawn token, by the numbers of its texts, are near its probability."""
    ids = text_tokenizer.encode("the").ids
    logits_v = make_model().logits(text_params, np.array([ids]))[0, -1, :VOCAB_SIZE]
    probs_v = np.asarray(jax.nn.softmax(logits_v / 0.5))
    many = Generator(make_model(), make_layout(), tokenizer_path, batch_size=512)
    generated = many(text_params, [ids] * 400, 1, Sampling(0.5))
    drawn = np.array([text.ids[0] for text in generated if text.ids])
    likeliest = int(probs_v.argmax())
    expected, spread = probs_v[likeliest], np.sqrt(probs_v[likeliest] / 400)
    assert abs(np.mean(drawn == likeliest) - expected) < 4 * spread


def test_padding_rows_are_never_drawn(generator, text_params):
    """Even where they are the likeliest: no token stands for them."""
    kernel = np.array(text_params["head"]["kernel"])
    kernel[:, 290:] = 1e3 * np.sign(kernel[:, :30])
    changed = text_params | {"head": {"kernel": kernel}}
    (generated,) = generator(changed, ["the"], 8, Sampling(1.0))
    assert max(generated.ids) < VOCAB_SIZE


def test_it_ends_where_the_context_ends(generator, text_tokenizer, text_params):
    long, short = generator(text_params, ["the", "the union of the"], 1000, GREEDY)
    assert (long.ended, short.ended) == ("context", "context")
    for prompt, generated in (("the", long), ("the union of the", short)):
        assert len(text_tokenizer.encode(prompt).ids) + len(generated.ids) == SEQ_LEN
    room = len(long.ids)
    assert generator(text_params, ["the"], room, GREEDY)[0].ended == "length"
    assert generator(text_params, ["the"], room, GREEDY)[0].ids == long.ids


def test_a_stop_sequence_ends_a_text_before_it(generator, text_tokenizer, text_params):
    """Wherever it lies among the tokens; the first one counts, and each text has its own end."""
    whole = generator(text_params, PROMPTS, 20, DRAWN)
    text = whole[1].text
    for first in (0, 3, len(text) - 2):
        stop = text[first : first + 2]
        before = text[: text.index(stop)]
        ours = generator(text_params, PROMPTS, 20, DRAWN, ["never", stop, text[-1] + "never"])
        assert (ours[1].text, ours[1].ended) == (before, "stop")
        assert stop in text_tokenizer.decode(ours[1].ids)
        assert stop not in text_tokenizer.decode(ours[1].ids[:-1])
        for mine, other in zip(ours, whole, strict=True):
            if stop not in other.text:
                assert mine == other


def test_a_text_ends_with_the_token_that_ends_texts(
    generator, text_tokenizer, text_params, tokenizer_path
):
    """The model's, or the only special one of the tokenizer; it is not part of the text."""
    ids = generator(text_params, ["the"], 10, GREEDY)[0].ids
    end = next(number for place, number in enumerate(ids) if number not in ids[:place] and place)
    before = ids[: ids.index(end)]
    inside = Generator(make_model(document_end=end), make_layout(), tokenizer_path)
    ours = inside(text_params, ["the", "union"], 10, GREEDY)
    assert (ours[0].ids, ours[0].ended) == (before, "end")
    assert ours[0].text == text_tokenizer.decode(before)

    special = text_tokenizer.token_to_id("<|end|>")
    kernel = np.array(text_params["head"]["kernel"])
    kernel[:, [end, special]] = kernel[:, [special, end]]
    changed = text_params | {"head": {"kernel": kernel}}
    (generated,) = generator(changed, ["the"], 10, GREEDY)
    assert (generated.ids, generated.ended) == (before, "end")


def test_only_the_end_of_the_datas_documents_ends_a_text(
    generator, text_tokenizer, text_params, tokenizer_path
):
    """Where it is known, the special token of the tokenizer is one like others."""
    ids = generator(text_params, ["the"], 10, GREEDY)[0].ids
    end = next(number for place, number in enumerate(ids) if number not in ids[:place] and place)
    told = Generator(make_model(), make_layout(), tokenizer_path, end_ids=[end])
    (ours,) = told(text_params, ["the"], 10, GREEDY)
    assert (ours.ids, ours.ended) == (ids[: ids.index(end)], "end")
    special = text_tokenizer.token_to_id("<|end|>")
    kernel = np.array(text_params["head"]["kernel"])
    kernel[:, [ids[0], special]] = kernel[:, [special, ids[0]]]
    changed = text_params | {"head": {"kernel": kernel}}
    (ours,) = told(changed, ["the"], 1, GREEDY)
    assert (ours.ids, ours.ended) == ([special], "length")


def _framed(tokenizer: Any) -> None:
    special = [("<|end|>", tokenizer.token_to_id("<|end|>"))]
    template = processors.TemplateProcessing("<|end|> $A <|end|>", special_tokens=special)
    tokenizer.post_processor = template


def _cut(tokenizer: Any) -> None:
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=12)


@pytest.mark.parametrize("change", [_framed, _cut])
def test_prompts_are_encoded_as_documents_and_tasks_are(
    change, tokenizer_path: Path, tmp_path: Path
):
    """They begin as the file's template says; a special token that a text spells is text."""
    changed = Tokenizer.from_file(str(tokenizer_path))
    change(changed)
    path = tmp_path / "tokenizer.json"
    path.write_text(changed.to_str())
    for prompt in ("the union of the", "the <|end|>"):
        generator = Generator(make_model(), make_layout(), path)
        begin = [changed.token_to_id("<|end|>")] if change is _framed else []
        assert generator.begin_ids == TextEncoder(path, VOCAB_SIZE).begin_ids == begin
        found = list(generator.encode(prompt))
        assert found[: len(begin)] == begin
        found = found[len(begin) :]
        assert found == Generator(make_model(), make_layout(), tokenizer_path).encode(prompt)
        assert found == TextEncoder(path, VOCAB_SIZE)([prompt])[prompt]
        document = Document("train", prompt, prompt.encode())
        ((_, tokens, _),) = encode([document], path, workers=1)
        assert found == tokens.tolist()
        assert changed.token_to_id("<|end|>") not in found


def test_bad_numbers_are_one_line(generator, text_params):
    with pytest.raises(InputError, match="num_tokens is 0: must be at least 1"):
        generator(text_params, ["the"], 0, GREEDY)
    with pytest.raises(InputError, match="a stop sequence is empty"):
        generator(text_params, ["the"], 3, GREEDY, ["a", ""])
    assert generator(text_params, [], 3, GREEDY) == []


@pytest.mark.parametrize(
    ("prompt", "message"), [("", "the prompt is empty"), ("zq" * 20, "has 40 tokens, the context")]
)
def test_a_prompt_without_tokens_or_room_is_one_line(generator, text_params, prompt, message):
    with pytest.raises(InputError, match=message):
        generator(text_params, ["the", prompt], 3, GREEDY)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tokenizer_path: Path):
    with pytest.raises(InputError, match="the model's vocabulary only 260"):
        Generator(make_model(vocab_size=260), make_layout(), tokenizer_path)


def test_a_model_that_continues_no_text_is_refused(tokenizer_path: Path):
    class Images:
        pass

    model: Any = Images()
    with pytest.raises(InputError, match="continues no text"):
        Generator(model, make_layout(), tokenizer_path)
