import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.evals.perplexity import FilePerplexity, Perplexity

LENGTHS = (48, 100, 150)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Of one window, of two and a short one, of three and one that is shorter still."""
    random = np.random.default_rng(4)
    paths = [tmp_path / f"{length}.npy" for length in LENGTHS]
    for path, length in zip(paths, LENGTHS, strict=True):
        random.integers(290, size=length).astype("<u2").tofile(path)
    return paths


def _perplexity(make_scorer: Any, sets: dict[str, list[Path]], **options: Any) -> dict[str, Any]:
    scorer, params = make_scorer()
    bytes_v = options.pop("token_bytes", None)
    files = {name: tuple(map(str, paths)) for name, paths in sets.items()}
    evaluator = FilePerplexity(scorer, Perplexity(files, **options), token_bytes=bytes_v)
    evaluator.compile()
    results = evaluator(params)
    metrics: Any = results.items.document["perplexity"]  # pyright: ignore
    for name, found in metrics.items():
        logged = {m: results.scalars[f"eval/{name}/{m}"] for m in found if m != "num_tokens"}
        assert found == logged | {"num_tokens": found["num_tokens"]}
    return metrics


def _windows(path: Path) -> list[list[int]]:
    tokens = np.fromfile(path, "<u2").tolist()
    return [tokens[i : i + 48] for i in range(0, len(tokens), 48)]


def test_the_exact_loss_is_the_mean_over_all_predicted_tokens(
    make_scorer: Any, files: list[Path], log_likelihood: Any
):
    windows = [window for path in files for window in _windows(path)]
    nats = [-log_likelihood(window[:1], window[1:]) for window in windows]
    num_tokens = sum(len(window) - 1 for window in windows)
    found = _perplexity(make_scorer, {"all": files})["all"]
    assert found["num_tokens"] == num_tokens == 298 - 8
    assert found["loss"] == pytest.approx(sum(nats) / num_tokens, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["bits_per_byte"] is None


def test_olmos_loss_is_the_mean_of_the_means_of_whole_windows(
    make_scorer: Any, files: list[Path], log_likelihood: Any
):
    whole = [w for path in files for w in _windows(path) if len(w) == 48]
    means = [-log_likelihood(window[:1], window[1:]) / 47 for window in whole]
    found = _perplexity(make_scorer, {"all": files})["all"]
    assert len(whole) == 6
    assert found["olmo_loss"] == pytest.approx(np.mean(means), rel=1e-5)
    assert found["olmo_perplexity"] == pytest.approx(math.exp(found["olmo_loss"]))
    assert found["olmo_loss"] != pytest.approx(found["loss"], rel=1e-4)


def test_sets_are_by_themselves_and_both_losses_agree_where_all_windows_are_whole(
    make_scorer: Any, files: list[Path]
):
    found = _perplexity(make_scorer, {"one": files[:1], "others": files[1:]})
    assert found["one"]["loss"] == pytest.approx(found["one"]["olmo_loss"])
    assert found["one"]["num_tokens"] == 47
    others = _perplexity(make_scorer, {"others": files[1:]})["others"]
    assert found["others"]["loss"] == pytest.approx(others["loss"], rel=1e-6)


def test_bits_per_byte_are_of_the_predicted_tokens(make_scorer: Any, files: list[Path]):
    bytes_v = np.arange(290) % 5
    found = _perplexity(make_scorer, {"all": files}, token_bytes=bytes_v)["all"]
    num_bytes = sum(bytes_v[w[1:]].sum() for path in files for w in _windows(path))
    bits = found["loss"] * found["num_tokens"] / math.log(2)
    assert found["bits_per_byte"] == pytest.approx(bits / num_bytes)


def test_ids_lie_within_the_tokenizer_too(make_scorer: Any, files: list[Path]):
    with pytest.raises(InputError, match="outside the vocabulary of 20"):
        _perplexity(make_scorer, {"all": files}, token_bytes=np.ones(20))


def test_a_set_shorter_than_a_window_has_no_olmo_loss(make_scorer: Any, tmp_path: Path):
    path = tmp_path / "short.npy"
    np.array([1, 2, 3], "<u4").tofile(path)
    found = _perplexity(make_scorer, {"short": [path]}, dtype="uint32")["short"]
    assert found["num_tokens"] == 2 and found["olmo_loss"] is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.array([1, 290], "<u2").tobytes(), "token 1 is 290, outside the vocabulary of 290"),
        (np.array([1], "<u2").tobytes(), "no tokens to predict"),
        (b"abc", "3 bytes are not a whole number of uint16 tokens"),
        (b"\x93NUMPY12", "is a NumPy file with a header"),
    ],
)
def test_a_bad_file_is_one_line(make_scorer: Any, tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "bad.npy"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        _perplexity(make_scorer, {"bad": [path]})


def test_a_file_of_a_wider_type_is_refused_unless_one_insists(make_scorer: Any, tmp_path: Path):
    path = tmp_path / "wide.npy"
    np.random.default_rng(0).integers(1, 290, 400).astype("<u4").tofile(path)
    with pytest.raises(
        InputError, match="look like uint32, .* eval.perplexity.dtype=uint32.*trust_dtype=true"
    ):
        _perplexity(make_scorer, {"wide": [path]})
    insisted = _perplexity(make_scorer, {"wide": [path]}, trust_dtype=True)["wide"]
    assert insisted["num_tokens"] == 800 - 17  # of 17 windows the first tokens are not predicted
