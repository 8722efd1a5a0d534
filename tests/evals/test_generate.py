from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.tokenizer import train_bpe
from jaxpretrain.evals.contract import Setting
from jaxpretrain.evals.generate import Generator, Samples
from jaxpretrain.models.decoder import Decoder, DecoderModel
from jaxpretrain.parallel.mesh import Layout, Mesh

SEQ_LEN = 24
VOCAB_SIZE = 270


def _model(vocab_size: int = VOCAB_SIZE) -> DecoderModel:
    decoder = Decoder(
        vocab_size=vocab_size,
        embedding_rows=320,
        d_model=32,
        num_layers=1,
        num_heads=4,
        d_ff=32,
        init="normal",
        init_std=0.3,
        dtype="float32",
        remat="none",
    )
    return decoder.build({"tokens": ((SEQ_LEN,), "int32")}, platform="cpu")


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(train_bpe(["the union of the states " * 20], VOCAB_SIZE, "<|end|>"))
    return path


@pytest.fixture(scope="module")
def params() -> Any:
    return jax.jit(_model().init)(jax.random.key(3))


@pytest.fixture(scope="module")
def generator(tokenizer_path: Path) -> Generator:
    return Generator(_model(), tokenizer_path)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(tokenizer_path))


def test_greedy_takes_the_likeliest_token_at_each_step(generator, tokenizer, params):
    """The context of each token is only what comes before it, without any padding."""
    prompt, logits = "the union", jax.jit(_model().logits)
    ids = tokenizer.encode(prompt).ids
    size = tokenizer.get_vocab_size()
    for _ in range(4):
        logits_v = logits(params, np.array([ids], np.int32))[0, -1, :size]
        ids.append(int(logits_v.argmax()))
    expected = tokenizer.decode(ids[len(tokenizer.encode(prompt).ids) :])
    assert generator(params, prompt, 4, temperature=0, seed=0) == expected
    assert generator(params, prompt, 4, temperature=0, seed=1) == expected


def test_draws_repeat_by_their_seed(generator, params):
    def draw(seed: int) -> str:
        return generator(params, "the", 12, temperature=1.0, seed=seed)

    assert draw(0) == draw(0)
    assert len({draw(seed) for seed in range(4)}) == 4


def test_draws_follow_the_models_distribution(generator, tokenizer, params):
    """The frequencies of one drawn token, by their seeds, are near its probabilities."""
    ids = tokenizer.encode("the").ids
    size = tokenizer.get_vocab_size()
    window = np.zeros((1, SEQ_LEN), np.int32)
    window[0, : len(ids)] = ids
    logits_v = _model().logits(params, window)[0, len(ids) - 1, :size]
    probs_v = np.asarray(jax.nn.softmax(logits_v / 0.5))
    drawn = [
        int(
            generator._next(
                params,
                window,
                np.int32(len(ids)),
                np.float32(0.5),
                np.int32(seed),
            )
        )
        for seed in range(400)
    ]
    likeliest = int(probs_v.argmax())
    expected, spread = probs_v[likeliest], np.sqrt(probs_v[likeliest] / 400)
    assert abs(np.mean(np.array(drawn) == likeliest) - expected) < 4 * spread


def test_padding_rows_are_never_drawn(generator, params):
    """Even where they are the likeliest: no token stands for them."""
    kernel = np.array(params["head"]["kernel"])
    kernel[:, 290:] = 1e3 * np.sign(kernel[:, :30])
    text = generator(params | {"head": {"kernel": kernel}}, "the", 8, temperature=1.0, seed=0)
    assert text


def test_it_ends_where_the_context_ends(generator, tokenizer, params):
    long = generator(params, "the", 1000, temperature=0, seed=0)
    assert long == generator(params, "the", SEQ_LEN - 1, temperature=0, seed=0)


@pytest.mark.parametrize(
    ("prompt", "message"), [("", "the prompt is empty"), ("zq" * 20, "has 40 tokens, the context")]
)
def test_a_prompt_without_tokens_or_room_is_one_line(generator, params, prompt, message):
    with pytest.raises(InputError, match=message):
        generator(params, prompt, 3, temperature=0, seed=0)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tokenizer_path: Path):
    with pytest.raises(InputError, match="the model's vocabulary only 260"):
        Generator(_model(vocab_size=260), tokenizer_path)


def test_a_model_that_continues_no_text_is_refused(tokenizer_path: Path):
    class Images:
        pass

    model: Any = Images()
    with pytest.raises(InputError, match="continues no text"):
        Generator(model, tokenizer_path)


def _setting(tokenizer_path: Path | None) -> Setting:
    layout = Layout(Mesh().build(jax.devices()[:1]))
    data = SimpleNamespace(tokenizer_path=tokenizer_path)
    return Setting(
        _model(), layout, params=None, source=None, data=data, eval_sets=[], batch_size=1
    )


def test_samples_are_the_same_at_each_evaluation(generator, params, tokenizer_path: Path):
    samples = Samples(_setting(tokenizer_path), ["the", "union"], num_tokens=5)
    results = samples(params)
    assert results == samples(params) and not results.scalars
    assert list(results.texts) == ["samples/0", "samples/1"]
    text = generator(params, "union", 5, temperature=0.8, seed=1)
    assert results.texts["samples/1"] == f"union|{text}"


def test_samples_need_a_tokenizer():
    with pytest.raises(InputError, match=r"eval\.prompts need a tokenizer"):
        Samples(_setting(None), ["the"], num_tokens=5)
