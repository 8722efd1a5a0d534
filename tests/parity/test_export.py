"""Folders of Hugging Face: there and back, and what transformers makes of ours."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxpretrain import convert
from jaxpretrain.evals.generation.token_loop import Rows, Sampling, TokenLoop
from jaxpretrain.interop.hf_config import read_config
from jaxpretrain.train.trained import Trained, load_trained
from scripts.make_golden_olmo import NATIVE, TRANSFORMERS, model_tokens, read
from tests.parity.models import Names, decoder

PROMPT = model_tokens()[0].tolist()
NUM_TOKENS = 64


def write_hugging_face(name: str, folder: Path, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """The folder of a model; (its tensors)."""
    architecture, model, _ = read_config(TRANSFORMERS[name], name)
    drawn = Names.of(architecture.table, model).draw()
    tensors = {key: array.astype(dtype) for key, array in drawn.items()}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TRANSFORMERS[name]))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


def there_and_back(folder: Path) -> Path:
    """`folder/theirs` as a run's folder, `folder/ours`, and as one of Hugging Face again."""
    theirs, ours, back = (folder / name for name in ("theirs", "ours", "back"))
    assert convert.main(["--from=hf", f"--input={theirs}", f"--output={ours}"]) == 0
    assert convert.main(["--to=hf", f"--input={ours}", f"--output={back}"]) == 0
    return back


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_every_bit_comes_back(name: str, dtype: Any, tmp_path: Path):
    tensors = write_hugging_face(name, tmp_path / "theirs", dtype)
    back = there_and_back(tmp_path)
    found = load_file(back / "model.safetensors")
    assert set(found) == set(tensors)
    for key, array in tensors.items():
        assert found[key].dtype == array.dtype and found[key].tobytes() == array.tobytes(), key
    config = json.loads((back / "config.json").read_text())
    assert read_config(config, "ours") == read_config(TRANSFORMERS[name], "theirs")


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_goes_on_as_we_do(name: str, tmp_path: Path):
    """The likeliest token, 64 times over, of what `--to=hf` wrote."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    write_hugging_face(name, tmp_path / "theirs")
    back = there_and_back(tmp_path)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(back, output_loading_info=True)
    assert not any(info.values())
    theirs = model.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT), dtype=torch.int64),
        do_sample=False,
        max_new_tokens=NUM_TOKENS,
    )
    assert theirs.shape == (1, len(PROMPT) + NUM_TOKENS)
    assert len(set(theirs[0, len(PROMPT) :].tolist())) > 12  # it does not go round in a circle
    trained = load_trained(tmp_path / "ours")
    config, data = trained.experiment.model, trained.experiment.data
    model: Any = replace(config, dtype="float32").build(data.example_spec(), platform="cpu")
    assert read_anew(model, trained.params) == theirs[0].tolist()
    assert with_cache(model, trained) == theirs[0].tolist()


def read_anew(model: Any, params: Any) -> list[int]:
    """The prompt and its likeliest continuation, the whole of it read again for each token."""
    logits = jax.jit(model.logits)
    tokens = np.zeros((1, len(PROMPT) + NUM_TOKENS), np.int32)
    tokens[0, : len(PROMPT)] = PROMPT
    for position in range(len(PROMPT), tokens.shape[1]):
        tokens[0, position] = jnp.argmax(logits(params, tokens)[0, position - 1])
    return tokens[0].tolist()


def with_cache(model: Any, trained: Trained) -> list[int]:
    """The same as `sample` computes it, beside a shorter text."""
    loop = TokenLoop(model, trained.layout, Sampling(temperature=0), model.config.vocab_size, [])
    lengths = np.array([len(PROMPT), 3], np.int32)
    prompts = np.array([PROMPT, PROMPT], np.int32)
    rows = Rows(prompts, lengths, lengths + NUM_TOKENS, np.arange(2), np.uint32(0))
    state = loop.begin(trained.params, rows, len(PROMPT) + NUM_TOKENS)
    state = loop.go_on(trained.params, rows, state, np.zeros(2, bool), NUM_TOKENS)
    return state.tokens_bs[0].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", NATIVE)
def test_a_checkpoint_of_olmos_trainer_computes_the_same_in_transformers(name: str, tmp_path: Path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "step1-unsharded"
    folder.mkdir()
    model, table = decoder(name, folder)
    tensors = Names.of(table, model).draw()
    torch.save({key: torch.from_numpy(a) for key, a in tensors.items()}, folder / "model.pt")
    output = tmp_path / "back"
    assert convert.main(["--from=olmo", "--to=hf", f"--input={folder}", f"--output={output}"]) == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(output)
    with torch.no_grad():
        logits = theirs(torch.tensor(model_tokens())).logits.numpy()
    np.testing.assert_allclose(logits, read("models", name)["logits"], rtol=0, atol=1e-4)
