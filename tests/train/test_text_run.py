"""A run on prepared text: what its folder, its samples and its exports know of the text."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jaxpretrain import convert
from jaxpretrain.config.errors import InputError
from jaxpretrain.data.prepare.prepare_text import PrepareText, prepare_text
from jaxpretrain.data.text.text import TextData
from jaxpretrain.data.token_files.tokenizer import special_id, train_bpe
from jaxpretrain.evals.config import Eval
from jaxpretrain.evals.samples import Continuations
from jaxpretrain.interop.tables import whole
from jaxpretrain.storage.jsonl import read_lines
from jaxpretrain.train.experiment import Ema, Experiment, resolve
from jaxpretrain.train.run import open_run, train_experiment
from jaxpretrain.train.trained import load_trained, open_source

TEXT = "der Kaiser von Atlantis dankt ab, und der Tod streikt"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents that end with </s>, which is not the first special token of their tokenizer."""
    folder = tmp_path_factory.mktemp("german")
    texts = [f"{TEXT} {number}" for number in range(120)]
    tokenizer = json.loads(train_bpe(texts, 290, "<|endoftext|>"))
    special = {**tokenizer["added_tokens"][0], "id": 290, "content": "</s>"}
    tokenizer["added_tokens"].append(special)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    spec = PrepareText(
        files=(str(folder / "text.jsonl"),),
        tokenizer=str(folder / "tokenizer.json"),
        eos_token="</s>",
        validation_fraction=0.2,
    )
    prepare_text(spec, folder / "prepared", workers=1)
    return folder / "prepared"


@pytest.fixture(scope="module")
def on_text(experiment: Experiment, prepared: Path) -> Experiment:
    """Two steps, evaluated by the average of the weights."""
    return replace(
        experiment,
        model=replace(experiment.model, vocab_size=291, embedding_rows=296),
        data=TextData(root=str(prepared), seq_len=32),
        train=replace(
            experiment.train, duration="2 steps", batch_size=8, ema=Ema(0.9, evaluate=True)
        ),
        eval=Eval(every="0 steps", samples=Continuations("held_out", 4)),
    )


@pytest.fixture(scope="module")
def run(on_text: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("text") / "run"
    assert train_experiment(resolve(on_text), workdir)
    return workdir


def test_the_end_of_documents_goes_from_the_manifest_into_exports(run: Path, tmp_path: Path):
    assert json.loads((run / "experiment.json").read_text())["eos_id"] == 290
    assert load_trained(run).end_ids == (290,)
    again, exported = tmp_path / "again", tmp_path / "exported"
    assert convert.main([f"--input={run}", f"--output={again}"]) == 0
    assert load_trained(again / "checkpoints" / "2").end_ids == (290,)
    assert convert.main(["--to=hf", f"--input={again}", f"--output={exported}"]) == 0

    def read(name: str) -> Any:
        return json.loads((exported / name).read_text())

    assert read("config.json")["eos_token_id"] == 290
    assert read("generation_config.json") == {"eos_token_id": 290}
    assert read("tokenizer_config.json")["eos_token"] == "</s>"
    assert special_id((exported / "tokenizer.json").read_text(), "</s>") == 290
    assert load_trained(exported).end_ids == (290,)


def test_a_folder_that_does_not_tell_the_end_still_opens(run: Path):
    path = run / "experiment.json"
    text = path.read_text()
    try:
        document = json.loads(text)
        del document["eos_id"]
        path.write_text(json.dumps(document))
        assert load_trained(run).end_ids == ()
        path.write_text(json.dumps({**document, "eos_id": "</s>"}))
        with pytest.raises(
            InputError, match="experiment.json: eos_id: expected a whole number or null, got '</s>'"
        ):
            load_trained(run)
    finally:
        path.write_text(text)


def test_another_end_of_documents_than_the_datas_is_refused(on_text: Experiment, tmp_path: Path):
    def check(document_end: int | None) -> None:
        model = replace(on_text.model, document_end=document_end)
        experiment = replace(on_text, model=model)
        open_run(resolve(experiment), tmp_path / "run", allow_config_change=False)

    check(None)
    check(290)
    for wrong in (0, 7):
        with pytest.raises(
            InputError, match=f"document_end={wrong}, but the data ends .* with 290"
        ):
            check(wrong)


def test_samples_begin_like_the_held_out_text(run: Path):
    lines = map(json.loads, (run / "samples.jsonl").read_text().splitlines())
    prompts = {line["samples/0"].split("|")[0] for line in lines}
    assert len(prompts) == 1 and prompts < {TEXT[:n] for n in range(4, len(TEXT))}


def test_the_weights_are_those_that_the_run_evaluates(run: Path):
    """So that a command says what the log says."""
    *_, logged = (x for x in read_lines(run / "metrics.jsonl") if "eval/text/loss" in x)
    losses = {}
    for weights in (None, "average", "plain"):
        trained = load_trained(run, weights)
        assert trained.weights == (weights or "average")
        sets = trained.experiment.data.open_evals(limits=trained.model.input_limits())
        held_out, _ = trained.experiment.eval.build(trained.setting(sets))
        held_out.compile()
        losses[weights] = held_out(trained.params).scalars["eval/text/loss"]
        source = open_source(run, weights)
        assert source.weights == trained.weights
        embedding = trained.params["embed"]["embedding"]
        assert (whole(source.params["embed/embedding"]) == embedding).all()
    assert losses[None] == losses["average"] == pytest.approx(logged["eval/text/loss"], rel=1e-6)
    assert abs(losses["plain"] - losses["average"]) > 1e-4


def test_an_average_that_is_not_there_is_one_line(run: Path, on_text: Experiment, tmp_path: Path):
    plain, exported = tmp_path / "plain", tmp_path / "exported"
    assert convert.main(["--weights=plain", f"--input={run}", f"--output={plain}"]) == 0
    assert convert.main(["--to=hf", f"--input={plain}", f"--output={exported}"]) == 0
    assert load_trained(plain).weights is load_trained(exported, "plain").weights is None
    messages = {
        plain: "--weights=average: checkpoint 2 of .* has no average of the weights",
        exported: "--weights=average: .* is a Hugging Face folder, which has no average",
    }
    for path, message in messages.items():
        for load in (load_trained, open_source):
            with pytest.raises(InputError, match=message):
                load(path, "average")
