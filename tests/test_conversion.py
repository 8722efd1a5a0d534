"""Checkpoints from one form to another, by the command."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxpretrain.checkpoints.names import to_named
from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.checkpoints.streamed import Streamed
from jaxpretrain.convert import main
from jaxpretrain.data.token_files.tokenizer import train_bpe
from jaxpretrain.interop.hugging_face import write_hugging_face
from jaxpretrain.interop.source import Source, text_data
from jaxpretrain.models.layers import RMSNorm
from jaxpretrain.models.olmo.config import Normal
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.train.trained import load_trained

MODEL = Decoder(
    vocab_size=310,
    embedding_rows=320,
    d_model=16,
    num_layers=2,
    num_heads=2,
    d_ff=24,
    norm=RMSNorm(rounding="after_scale"),
    norm_position="after",
    qk_norm=True,
    init=Normal(),
)


@pytest.fixture(scope="module")
def tokenizer() -> str:
    """With 0 as the id that ends documents."""
    return train_bpe(["the union of the states " * 20], 300, "<|end|>")


@pytest.fixture
def folder(tmp_path: Path, tokenizer: str) -> Path:
    """A tiny OLMo 2 of Hugging Face in bfloat16, with a tokenizer."""
    data = text_data(32, 320)
    built = MODEL.build(data.example_spec(), platform="cpu")
    params = to_named(jax.jit(built.init)(jax.random.key(0)))

    def stream(leaf: jax.Array) -> Streamed:
        return Streamed(leaf.shape, np.dtype(np.float32), lambda: [np.asarray(leaf)])

    arrays = {name: stream(leaf) for name, leaf in params.items()}
    source = Source(MODEL, data, 0, arrays, tmp_path, origin={"token_ids": {"eos_token_id": 0}})
    (tmp_path / "tokenizer.json").write_text(tokenizer)
    write_hugging_face(source, tmp_path / "hf", "bfloat16")
    (tmp_path / "tokenizer.json").unlink()
    return tmp_path / "hf"


@pytest.fixture
def command(run_command: Any) -> Any:
    return partial(run_command, main)


def test_there_and_back_nothing_has_changed(command: Any, folder: Path, tmp_path: Path):
    run_ = tmp_path / "runs" / "olmo2"
    code, output, error = command("--from=hf", f"--input={folder}", f"--output={run_}", "--json")
    assert (code, error) == (0, "")
    assert json.loads(output) == {
        "output": str(run_),
        "step": 0,
        "num_parameters": sum(a.size for a in load_file(folder / "model.safetensors").values()),
        "source_dtype": "bfloat16",
        "has_optimizer": False,
    }
    back = tmp_path / "back"
    code, output, _ = command("--to=hf", f"--input={run_}", f"--output={back}")
    assert code == 0 and "parameters that were bfloat16" in output
    assert {path.name for path in back.iterdir()} == {path.name for path in folder.iterdir()}
    for path in folder.iterdir():
        assert (back / path.name).read_bytes() == path.read_bytes(), path.name


def test_types_that_weights_had_come_through_a_run_s_folder(
    command: Any, folder: Path, tmp_path: Path
):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = np.linspace(0.1, 0.9, 16, dtype=np.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    run_ = tmp_path / "run"
    code, output, _ = command("--from=hf", f"--input={folder}", f"--output={run_}")
    assert code == 0 and "parameters that were bfloat16 and float32" in output
    command("--to=hf", f"--input={run_}", f"--output={tmp_path / 'back'}")
    back = load_file(tmp_path / "back" / "model.safetensors")
    for name, array in tensors.items():
        assert back[name].dtype == array.dtype and back[name].tobytes() == array.tobytes(), name


def test_a_converted_model_is_a_run_s_folder(command: Any, folder: Path, tmp_path: Path):
    command("--from=hf", f"--input={folder}", f"--output={tmp_path / 'run'}")
    trained = load_trained(tmp_path / "run")
    assert trained.tokenizer_path == tmp_path / "run" / "tokenizer.json"
    assert trained.experiment.data.example_spec() == {"tokens": ((32,), "int32")}
    direct = load_trained(folder)
    assert trained.experiment == direct.experiment
    for a, b in zip(jax.tree.leaves(trained.params), jax.tree.leaves(direct.params), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_checkpoints_are_averaged_whatever_they_are(command: Any, folder: Path, tmp_path: Path):
    """A run's folder and a Hugging Face folder, to either."""
    tensors = load_file(folder / "model.safetensors")
    other = tmp_path / "other"
    command("--to=hf", f"--input={folder}", f"--output={other}", "--dtype=float32")
    save_file(
        {name: 3 * array.astype(np.float32) for name, array in tensors.items()},
        other / "model.safetensors",
    )
    command("--from=hf", f"--input={folder}", f"--output={tmp_path / 'run'}")
    merged = f"--merge={tmp_path / 'run' / 'checkpoints' / '0'},{other}"
    assert command(merged, f"--output={tmp_path / 'soup'}")[0] == 0
    assert Checkpoints(tmp_path / "soup" / "checkpoints").steps() == [0]
    code, _, _ = command(merged, "--to=hf", f"--output={tmp_path / 'soup-hf'}")
    assert code == 0
    soup = load_file(tmp_path / "soup-hf" / "model.safetensors")
    for name, array in tensors.items():
        np.testing.assert_array_equal(soup[name], 2 * array.astype(np.float32))


def test_tokenizer_and_end_of_documents_can_be_given(
    command: Any, folder: Path, tmp_path: Path, tokenizer: str
):
    """To a model without them, as one that was trained on raw files."""
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).unlink()
    _change_config(eos_token_id=None)(folder)
    flags = ["--from=hf", f"--input={folder}", "--to=hf"]
    code, _, error = command(*flags, f"--output={tmp_path / 'bare'}")
    assert code == 0 and error.count("\n") == 2
    assert "no tokenizer.json; --tokenizer gives" in error and "--eos_id tells it" in error
    assert not (tmp_path / "bare" / "generation_config.json").exists()
    path = tmp_path / "given.json"
    path.write_text(tokenizer)
    code, _, error = command(
        *flags, f"--tokenizer={path}", "--eos_id=0", f"--output={tmp_path / 'full'}"
    )
    assert (code, error) == (0, "")
    full = tmp_path / "full"
    assert (full / "tokenizer.json").read_text() == tokenizer
    assert json.loads((full / "generation_config.json").read_text()) == {"eos_token_id": 0}
    assert json.loads((full / "config.json").read_text())["eos_token_id"] == 0
    assert json.loads((full / "tokenizer_config.json").read_text())["eos_token"] == "<|end|>"


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def _lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")


def _change_config(**keys: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | keys))

    return change


def _grow_tokenizer(folder: Path) -> None:
    document = json.loads((folder / "tokenizer.json").read_text())
    document["added_tokens"].append({"id": 320, "content": "<more>", "special": True})
    (folder / "tokenizer.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "model.safetensors is damaged or not a safetensors file"),
        (_lose_a_tensor, "model.norm.weight is missing"),
        (_change_config(num_hidden_layers=1), "model.layers.1.mlp.down_proj.weight and 10 more"),
        (_change_config(intermediate_size=26), "but its config says [26, 16]"),
        (_change_config(architectures=["BertModel"]), "the architecture is BertModel"),
        (_change_config(num_attention_heads=3), "cannot divide hidden_size by num_attention_heads"),
        (_change_config(tie_word_embeddings=True), "lm_head.weight is not model.embed_tokens"),
        (_grow_tokenizer, "tokenizer.json has 321 ids, but the embedding only 320 rows"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: is not valid JSON"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has neither model.safetensors"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    command: Any, folder: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
):
    damage(folder)
    code, output, error = command("--from=hf", f"--input={folder}", f"--output={tmp_path / 'run'}")
    assert (code, output) == (2, "")
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_damage_that_shows_while_writing_leaves_nothing(command: Any, folder: Path, tmp_path: Path):
    command("--from=hf", f"--input={folder}", f"--output={tmp_path / 'run'}")
    state = tmp_path / "run" / "checkpoints" / "0" / "state" / "params"
    chunk = max(state.rglob("1.0.0"), key=lambda path: path.stat().st_size)
    content = bytearray(chunk.read_bytes())
    content[-1] ^= 1
    chunk.write_bytes(content)
    code, _, error = command("--to=hf", f"--input={tmp_path / 'run'}", f"--output={tmp_path / 'b'}")
    assert code == 2 and "checkpoint 0 of" in error and "is damaged" in error
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "run"}


def test_a_model_that_no_class_computes_is_not_exported(command: Any, folder: Path, tmp_path: Path):
    command("--from=hf", f"--input={folder}", f"--output={tmp_path / 'run'}")
    path = tmp_path / "run" / "experiment.json"
    document = json.loads(path.read_text())
    document["config"]["model"]["norm_position"] = "before"
    path.write_text(json.dumps(document))
    code, _, error = command("--to=hf", f"--input={tmp_path / 'run'}", f"--output={tmp_path / 'b'}")
    assert code == 2 and "model.norm_position=before, which is after in Olmo2ForCausalLM" in error
    assert not (tmp_path / "b").exists()


def test_what_is_there_already_is_not_touched(command: Any, folder: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    code, _, error = command("--from=hf", f"--input={folder}", f"--output={tmp_path / 'run'}")
    assert code == 2 and f"--output={tmp_path / 'run'} is there already" in error
    assert not list((tmp_path / "run").iterdir())


def test_a_failure_while_writing_leaves_no_folder(command: Any, folder: Path, tmp_path: Path):
    def fail(*_: object) -> None:
        raise OSError("disk on fire")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxpretrain.conversion.write_streamed", fail)
        flags = ["--from=hf", f"--input={folder}", f"--output={tmp_path / 'run'}"]
        code, _, error = command(*flags)
    assert (code, error) == (2, f"error: --output={tmp_path / 'run'}: disk on fire\n")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_model_goes_through_a_bucket(
    command: Any, folder: Path, bucket: Path, monkeypatch: pytest.MonkeyPatch
):
    for file in folder.iterdir():
        (bucket / "hf" / file.name).write_bytes(file.read_bytes())
    flags = "--from=hf", "--to=hf", "--input=gs://bucket/hf", "--output=gs://bucket/back"
    code, output, error = command(*flags)
    assert code == 0 and output.startswith("gs://bucket/back: step 0"), error
    for file in folder.iterdir():
        assert (bucket / "back" / file.name).read_bytes() == file.read_bytes(), file.name
    code, _, error = command(*flags)
    assert (code, error) == (
        2,
        "error: --output=gs://bucket/back is there already; take another name\n",
    )
