import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import pytest

from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.data.text.text import TextData
from jaxpretrain.data.token_files.tokenizer import train_bpe
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.sample import main
from jaxpretrain.train.experiment import Experiment, resolve
from jaxpretrain.train.workdir import keep_tokenizer, write_experiment


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with one step of a model that knows nothing yet."""
    workdir = tmp_path_factory.mktemp("sample") / "run"
    workdir.mkdir()
    decoder = Decoder(
        vocab_size=270,
        embedding_rows=272,
        d_model=32,
        num_layers=1,
        num_heads=4,
        d_ff=32,
        dtype="float32",
        remat="none",
    )
    experiment = Experiment(model=decoder, data=TextData(seq_len=16), optim=AdamW())
    write_experiment(workdir, resolve(experiment), "")
    tokenizer = workdir / "source.json"
    tokenizer.write_text(train_bpe(["the union of the states " * 20], 270, "<|end|>"))
    keep_tokenizer(workdir, tokenizer)
    model = decoder.build(experiment.data.example_spec(), platform="cpu")
    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(7, {"params": jax.jit(model.init)(jax.random.key(0))}, {})
    checkpoints.wait()
    return workdir


@pytest.fixture
def command(run_command: Any) -> Any:
    return partial(run_command, main)


def test_a_prompt_is_continued(command: Any, checkpoint: Path):
    flags = [f"--checkpoint={checkpoint}", "--prompt=the union", "--num_tokens=4"]
    code, output, error = command(*flags, "--seed=3")
    assert (code, error) == (0, "")
    assert output.startswith("the union") and len(output) > len("the union\n")
    of_step = [f"--checkpoint={checkpoint / 'checkpoints' / '7'}", *flags[1:]]
    code, document, _ = command(*of_step, "--seed=3", "--json")
    assert code == 0
    continuation = output.removeprefix("the union")[:-1]
    sample = {"prompt": "the union", "continuation": continuation, "ended": "length"}
    assert json.loads(document) == {"step": 7, **sample, "samples": [sample]}
    assert document.count("\n") == 1


def test_many_prompts_are_continued_at_once(command: Any, checkpoint: Path):
    flags = [f"--checkpoint={checkpoint}", "--temperature=0", "--num_tokens=20"]
    prompts = ["the union of the", "the", "states"]
    code, document, _ = command(*flags, *(f"--prompt={text}" for text in prompts), "--json")
    document = json.loads(document)
    assert code == 0 and set(document) == {"step", "samples"}
    assert [sample["prompt"] for sample in document["samples"]] == prompts
    assert {sample["ended"] for sample in document["samples"]} == {"context"}
    code, output, _ = command(*flags, *(f"--prompt={text}" for text in prompts))
    texts = [sample["prompt"] + sample["continuation"] for sample in document["samples"]]
    assert (code, output) == (0, "\n\n".join(texts) + "\n")
    for prompt, sample in zip(prompts, document["samples"], strict=True):
        _, alone, _ = command(*flags, f"--prompt={prompt}", "--json")
        assert json.loads(alone)["samples"] == [sample]


def test_a_text_ends_before_its_stop_sequence(command: Any, checkpoint: Path):
    flags = [f"--checkpoint={checkpoint}", "--prompt=the", "--num_tokens=8", "--json"]
    _, document, _ = command(*flags)
    text = json.loads(document)["continuation"]
    stop = text[3:5]
    code, document, _ = command(*flags, "--stop=nowhere", f"--stop={stop}")
    assert code == 0 and json.loads(document)["ended"] == "stop"
    assert json.loads(document)["continuation"] == text[: text.index(stop)]


def test_the_likeliest_token_alone_leaves_nothing_to_the_seed(command: Any, checkpoint: Path):
    flags = [f"--checkpoint={checkpoint}", "--prompt=the", "--num_tokens=8"]
    outputs = {
        command(*flags, *more)[1]
        for more in (["--temperature=0"], ["--top_k=1", "--seed=1"], ["--top_p=1e-6", "--seed=2"])
    }
    assert len(outputs) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_tokens=0"], "--num_tokens must be at least 1"),
        (["--temperature=-1"], "temperature is -1.0: must not be negative"),
        (["--top_k=0"], "top_k is 0: must be at least 1"),
        (["--top_p=0"], "top_p is 0.0: must be above 0 and at most 1"),
        (["--top_p=1.5"], "top_p is 1.5: must be above 0 and at most 1"),
        (["--seed=-1"], "seed is -1: must be at least 0"),
        (["--stop="], "a stop sequence is empty"),
        (["--prompt="], "the prompt is empty"),
        (["--prompt=zqzqzqzqzqzqzqzqzqzq"], "has 20 tokens, the context only 16"),
        (["--checkpoint=/nowhere"], "--checkpoint=/nowhere: no such folder"),
        (["--temprature=1"], "Did you mean --temperature?"),
    ],
)
def test_bad_input_is_one_line(command: Any, checkpoint: Path, flags: list[str], message: str):
    code, output, error = command(f"--checkpoint={checkpoint}", "--prompt=the", *flags)
    assert (code, output) == (2, "")
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_without_a_tokenizer_there_is_no_prompt(command: Any, checkpoint: Path, tmp_path: Path):
    for path in ("experiment.json", "checkpoints"):
        (tmp_path / path).symlink_to(checkpoint / path)
    code, _, error = command(f"--checkpoint={tmp_path}", "--prompt=the")
    assert code == 2 and "has no tokenizer.json" in error
