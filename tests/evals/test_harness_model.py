"""lm-evaluation-harness on our models, and on the same weights by its own `hf` model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from jaxpretrain import convert
from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.config.errors import InputError
from jaxpretrain.data.text.text import TextData
from jaxpretrain.data.token_files.special import beginning_with
from jaxpretrain.evals.generation.generator import Generator
from jaxpretrain.evals.harness import Harness
from jaxpretrain.evals.harness_model import HarnessModel
from jaxpretrain.evals.scoring.scorer import Scorer
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.parallel.mesh import Layout, Mesh
from jaxpretrain.train.experiment import Experiment, resolve
from jaxpretrain.train.trained import load_trained
from jaxpretrain.train.workdir import keep_tokenizer, write_experiment
from tests.evals.conftest import CONTEXT, DECODER, EXAMPLE, TEXT, VOCAB_SIZE

COLOURS = ("red", "blue", "yellow", "red or blue", "the one of a rose, or else of the sea")
TASKS = {
    "colours": {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: Which is {{colour}}?\nAnswer:",
        "doc_to_choice": ["rose", "sea", "a rose, because yes", "s"],
        "doc_to_target": 1,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "letters": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{colour}} ",  # ends with a blank, which goes to the choices
        "target_delimiter": "",
        "doc_to_choice": ["A", "B"],
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}],
    },
    "texts": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "answers": {
        "output_type": "generate_until",
        "doc_to_text": "Which is {{colour}}? ",
        "doc_to_target": " rose",
        "generation_kwargs": {"until": ["e", "?"], "max_gen_toks": 20},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tasks as files."""
    folder = tmp_path_factory.mktemp("tasks")
    texts = [TEXT * number for number in range(1, 6)]  # up to several contexts long
    rows = [{"colour": a, "text": b} for a, b in zip(COLOURS, texts, strict=True)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
    }
    for name, task in TASKS.items():
        # JSON is YAML.
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **data, **task}))
    return folder


@pytest.fixture
def model(make_scorer: Any, tokenizer: Path) -> HarnessModel:
    scorer, params = make_scorer()
    layout = Layout(Mesh().build(jax.devices()[:1]))
    generator = Generator(DECODER.build(EXAMPLE, platform="cpu"), layout, tokenizer)
    return HarnessModel(scorer, generator, params, tokenizer)


@pytest.fixture
def workdir(tokenizer: Path, tmp_path: Path) -> Path:
    """A run whose model has no rows of padding, which `hf` would generate too."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    decoder = replace(DECODER, embedding_rows=VOCAB_SIZE)
    experiment = Experiment(model=decoder, data=TextData(seq_len=CONTEXT), optim=AdamW())
    write_experiment(workdir, resolve(experiment), "")
    keep_tokenizer(workdir, tokenizer)
    model = decoder.build(EXAMPLE, platform="cpu")
    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(1, {"params": jax.jit(model.init)(jax.random.key(1))}, {})
    checkpoints.wait()
    return workdir


def _evaluate(folder: Path, model: Any, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(metrics of each task, answers to each of its requests)."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    results: Any = simple_evaluate(model, tasks=list(TASKS), task_manager=manager, **options)
    answers = {name: [s["resps"] for s in samples] for name, samples in results["samples"].items()}
    return results["results"], answers


def test_answers_are_those_of_the_logits(
    model: HarnessModel, tokenizer: Path, log_likelihood: Any, folder: Path
):
    _, answers = _evaluate(folder, model)
    for colour, found in zip(COLOURS, answers["colours"], strict=True):
        context = f"Question: Which is {colour}?\nAnswer:"
        before = model.tok_encode(context)
        for choice, ((value, _),) in zip(TASKS["colours"]["doc_to_choice"], found, strict=True):
            continuation = model.tok_encode(f"{context} {choice}")[len(before) :]
            assert value == pytest.approx(log_likelihood(before, continuation), rel=2e-5)
    ids = model.tok_encode(3 * TEXT)
    assert 2 * CONTEXT < len(ids) < 3 * CONTEXT
    # Windows do not overlap, but the last one is full and scores only what is left.
    windows = [
        ([model.eot_token_id], ids[:CONTEXT]),
        (ids[CONTEXT - 1 : CONTEXT], ids[CONTEXT : 2 * CONTEXT]),
        (ids[len(ids) - CONTEXT - 1 : 2 * CONTEXT], ids[2 * CONTEXT :]),
    ]
    expected = sum(log_likelihood(*window) for window in windows)
    assert np.ravel(answers["texts"][2]) == pytest.approx([expected], rel=2e-5)


def test_answers_come_in_the_order_of_requests_and_are_kept(model: HarnessModel):
    kept = []
    model.cache_hook.add_partial = lambda *args: kept.append(args)
    few, many = ({"until": [], "max_gen_toks": number} for number in (3, 9))
    asked = [("A rose", few), ("yes", many), ("no", few), ("", many)]
    requests = [Instance("generate_until", {}, args, 0) for args in asked]
    texts = model.generate_until(requests)
    assert texts == [model.generate_until([request])[0] for request in requests]
    for args, text in zip(asked, texts, strict=True):
        assert ("generate_until", args, text) in kept
    pairs = [("A rose", " is"), ("", "yes"), ("A rose", " no")]
    answers = model.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs])
    for pair, answer in zip(pairs, answers, strict=True):
        assert ("loglikelihood", pair, answer) in kept
    (text,) = model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("yes",), 0)])
    assert text == answers[1][0]
    assert kept[-1] == ("loglikelihood_rolling", ("yes",), text)


def test_what_cannot_be_asked_is_refused(
    model: HarnessModel, folder: Path, make_setting: Any, tokenizer: Path
):
    for options, message in (
        ({"max_gen_toks": CONTEXT}, "asks for 48 tokens .max_gen_toks., but the context has 48"),
        ({"num_beams": 4, "max_gen_toks": 8}, "asks to generate as we cannot: .*num_beams"),
    ):
        with pytest.raises(InputError, match=message):
            model.generate_until([Instance("generate_until", {}, ("A", options), 0)])
    with pytest.raises(InputError, match="no task 'colors'. Did you mean 'colours'"):
        Harness(("colors",), str(folder)).build(make_setting(task_tokenizer=tokenizer)[0])


@pytest.mark.parametrize("path", ["nobody/nothing", "json"])
def test_data_that_cannot_be_loaded_is_one_line(
    tmp_path: Path, path: str, make_setting: Any, tokenizer: Path
):
    """From the Hub, which tests cannot reach, or of a file that is not there."""
    task = {"task": "far", "dataset_path": path, **TASKS["colours"], "test_split": "test"}
    if path == "json":
        task["dataset_kwargs"] = {"data_files": {"test": str(tmp_path / "no.jsonl")}}
    (tmp_path / "far.yaml").write_text(json.dumps(task))
    setting, _ = make_setting(task_tokenizer=tokenizer)
    with pytest.raises(InputError, match="harness.tasks=far: its data cannot be loaded: .*Hub"):
        Harness(("far",), str(tmp_path)).build(setting)


def test_texts_begin_as_the_documents_of_the_tokenizer_do(
    make_scorer: Any, tokenizer: Path, tmp_path: Path, log_likelihood: Any
):
    """Once, also where there is no context; what goes on does not begin."""
    path = tmp_path / "tokenizer.json"
    path.write_text(beginning_with(tokenizer.read_text(), "<|end|>"))
    scorer, params = make_scorer()
    layout = Layout(Mesh().build(jax.devices()[:1]))
    generator = Generator(DECODER.build(EXAMPLE, platform="cpu"), layout, path)
    model = HarnessModel(scorer, generator, params, path)
    (first,) = generator.begin_ids
    context = model.tok_encode("A", add_special_tokens=False)
    assert model.tok_encode("A") == [first, *context] and model.prefix_token_id == first
    rose = model.tok_encode(" rose", add_special_tokens=False)
    pairs = [("A", " rose"), ("", " rose")]
    (after, _), (alone, _) = model.loglikelihood(
        [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    )
    assert after == pytest.approx(log_likelihood([first, *context], rose), rel=2e-5)
    assert alone == pytest.approx(log_likelihood([first], rose), rel=2e-5)
    (rolled,) = model.loglikelihood_rolling([Instance("", {}, (" rose",), 0)])
    assert rolled == pytest.approx(alone, rel=2e-5)


def test_a_continuation_beyond_the_context_is_scored_in_windows(
    model: HarnessModel, log_likelihood: Any, capsys: pytest.CaptureFixture[str]
):
    """All of it, as long texts are; the run goes on."""
    long = 2 * TEXT
    pairs = [("A", " rose"), ("A", long)]
    short, (value, _) = model.loglikelihood(
        [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    )
    assert "longer than the context, scored in windows of it: 1" in capsys.readouterr().err
    (alone,) = model.loglikelihood([Instance("loglikelihood", {}, pairs[0], 0)])
    assert short[0] == pytest.approx(alone[0], rel=1e-5)
    before = model.tok_encode("A")
    ids = model.tok_encode("A" + long)[len(before) :]
    assert CONTEXT < len(ids) < 2 * CONTEXT
    parts = ids[:CONTEXT], ids[CONTEXT:]
    expected = log_likelihood(before, parts[0]) + log_likelihood([*before, *parts[0]], parts[1])
    assert value == pytest.approx(expected, rel=2e-5)


def test_a_tasks_data_are_loaded_once_for_many_checkpoints(
    make_setting: Any, tokenizer: Path, folder: Path
):
    setting, params = make_setting(task_tokenizer=tokenizer)
    evaluate = Harness(("colours",), str(folder)).build(setting)
    first = evaluate(params)
    assert first.scalars["eval/colours/acc,none"] >= 0 and evaluate(params) == first


@pytest.mark.slow
def test_its_own_model_says_the_same_of_the_exported_checkpoint(
    workdir: Path, folder: Path, tmp_path: Path
):
    for program in ("torch", "transformers", "accelerate"):
        pytest.importorskip(program)
    exported = tmp_path / "exported"
    assert convert.main(["--to=hf", f"--input={workdir}", f"--output={exported}"]) == 0
    hf = {"model_args": f"pretrained={exported},dtype=float32", "batch_size": 2, "device": "cpu"}
    theirs, their_answers = _evaluate(folder, "hf", **hf)

    trained = load_trained(workdir)
    parts = trained.model, trained.layout
    scorer = Scorer(*parts, trained.params, batch_tokens=512)
    generator = Generator(*parts, workdir / "tokenizer.json")
    model = HarnessModel(scorer, generator, trained.params, workdir / "tokenizer.json")
    ours, our_answers = _evaluate(folder, model)

    assert our_answers["answers"] == their_answers["answers"]
    assert len({text for ((text,),) in our_answers["answers"]}) > 3
    for name in ("colours", "letters", "texts"):
        found, expected = (np.array(a[name], float) for a in (our_answers, their_answers))
        np.testing.assert_allclose(found, expected, atol=1e-3, err_msg=name)
    for name, metrics in theirs.items():
        numbers = {key: value for key, value in metrics.items() if isinstance(value, float)}
        assert numbers and numbers == pytest.approx(
            {key: ours[name][key] for key in numbers}, rel=1e-5
        )
