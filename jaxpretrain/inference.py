"""Trained checkpoints put to use: the work of the commands `evaluate` and `sample`."""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.config.command import split_paths
from jaxpretrain.config.errors import InputError
from jaxpretrain.devices.startup import keep_compiled
from jaxpretrain.display.progress import activity, say
from jaxpretrain.evals.config import Eval
from jaxpretrain.evals.contract import Evaluator, compile_evaluators
from jaxpretrain.evals.generation.generator import Generated, Generator
from jaxpretrain.evals.generation.token_loop import Sampling
from jaxpretrain.evals.harness import Harness
from jaxpretrain.evals.output import CheckpointResults
from jaxpretrain.evals.perplexity import Perplexity
from jaxpretrain.evals.tasks.catalogue import find_tasks
from jaxpretrain.evals.tasks.package import find_tokenizer
from jaxpretrain.monitor.writers import write_pictures
from jaxpretrain.storage.paths import parse
from jaxpretrain.train.program import build_model
from jaxpretrain.train.trained import Trained, load_trained

_SHORT_FORMS = {
    "eval.tasks": "--tasks",
    "eval.tokenizer": "--tokenizer",
    "eval.harness.tasks": "--harness",
    "eval.harness.folder": "--harness_folder",
    "eval.perplexity.dtype": "--token_dtype",
    "eval.perplexity.trust_dtype=true": "--trust_token_dtype",
}
"""Fields of the config -> the flags of `evaluate` that set them, for its errors."""


def evaluate(flags: Namespace) -> Iterator[CheckpointResults]:
    """Yields the outcome of each checkpoint in turn, by what was compiled for the first one."""
    keep_compiled()
    named = _named(flags)
    # Wrong names are refused here, before any weights are read.
    find_tasks(() if named is None else named.tasks)
    if flags.tokenizer is not None:
        find_tokenizer(str(flags.tokenizer))
    evaluators = None
    for path in _checkpoints(flags.checkpoint, flags.steps):
        with activity("reading the checkpoint"):
            trained = load_trained(path, flags.weights)
        if evaluators is None:
            with activity("opening and compiling the evaluations"):
                evaluators = _build(trained, flags, named)
        with activity(f"evaluating step {trained.step:,}"):
            results = [evaluator(trained.params) for evaluator in evaluators]
        if flags.pictures is not None:
            for result in results:
                write_pictures(flags.pictures, trained.step, result.images)
        yield CheckpointResults(
            trained.step, results, is_own=named is None, weights=trained.weights
        )


def continue_texts(flags: Namespace) -> tuple[Trained, list[Generated]]:
    """Returns the checkpoint of `sample` and the continuations of its prompts."""
    sampling = Sampling(flags.temperature, flags.top_k, flags.top_p, flags.seed)
    keep_compiled()
    with activity("reading the checkpoint"):
        trained = load_trained(flags.checkpoint, flags.weights)
    if trained.tokenizer_path is None:
        raise InputError(
            f"{flags.checkpoint} has no tokenizer.json, so it cannot read a prompt; convert "
            "--tokenizer=FILE makes a folder with one"
        )
    parts = trained.model, trained.layout, trained.tokenizer_path
    generator = Generator(*parts, end_ids=trained.end_ids)
    asked = flags.prompt, flags.num_tokens, sampling, flags.stop
    with activity("generating"):
        return trained, generator(trained.params, *asked)


def _named(flags: Namespace) -> Eval | None:
    """Returns the evaluations that the flags name; None where they name none: the run's own."""
    if not (flags.tasks or flags.harness or flags.perplexity):
        return None
    sets: dict[str, tuple[str, ...]] = {}
    for text in flags.perplexity:
        name, equals, files = text.partition("=")
        if not (name and equals and files):
            raise InputError(f"--perplexity={text}: write NAME=FILE.npy, or several by commas")
        if name in sets:
            raise InputError(f"--perplexity={text}: there is a set {name} already")
        sets[name] = tuple(str(parse(file, "--perplexity")) for file in split_paths(files))
    harness = tuple(name for name in flags.harness.split(",") if name)
    folder = None if flags.harness_folder is None else str(flags.harness_folder)
    trust = bool(flags.trust_token_dtype)
    return Eval(
        tasks=tuple(split_paths(flags.tasks)),
        harness=Harness(harness, folder, flags.num_fewshot) if harness else None,
        perplexity=Perplexity(sets, flags.token_dtype, trust) if sets else None,
    )


def _build(trained: Trained, flags: Namespace, named: Eval | None) -> list[Evaluator]:
    """Returns the evaluators that are named, or those of the run, compiled."""
    experiment = trained.experiment
    own = experiment.eval
    tokenizer = own.tokenizer if flags.tokenizer is None else str(flags.tokenizer)
    items = own.task_items if named is None and flags.limit is None else flags.limit
    evals = replace(named or own, tokenizer=tokenizer, task_items=items)
    reads_texts = named is not None and (named.tasks or named.harness)
    if reads_texts and tokenizer is None and trained.tokenizer_path is None:
        raise InputError(
            "the checkpoint has no tokenizer.json to read the tasks with: set --tokenizer"
        )
    model = trained.model
    if flags.dtype is not None:
        changed = replace(experiment, model=replace(experiment.model, dtype=flags.dtype))
        model = build_model(changed, trained.layout)
    opened = experiment.data.open_evals(limits=model.input_limits()) if named is None else ()
    setting = replace(
        trained.setting(opened),
        model=model,
        batch_tokens=None if named is None else flags.batch_tokens * trained.layout.num_data,
        task_seed=flags.subset_seed,
    )
    try:
        evaluators = evals.build(setting)
    except InputError as error:
        raise InputError(_in_flags(str(error))) from error
    compile_evaluators(evaluators, say)
    return evaluators


def _in_flags(message: str) -> str:
    """Returns an error about fields of the config in the words of the command."""
    for path, flag in _SHORT_FORMS.items():
        message = message.replace(path, flag)
    return message


def _checkpoints(path: Path, steps: str | None) -> list[Path]:
    """Returns the checkpoints of `--checkpoint` and `--steps`, in order of their steps."""
    if steps is None:
        return [path]
    folder = path / "checkpoints"
    if not folder.is_dir():
        raise InputError(f"--steps needs a run's folder with checkpoints; {path} is none")
    saved = Checkpoints(folder, read_only=True).steps()
    first, colon, last = steps.partition(":")
    try:
        if steps == "all":
            chosen = saved
        elif colon:
            low, high = int(first or 0), int(last) if last else max(saved, default=0)
            chosen = [step for step in saved if low <= step <= high]
        else:
            chosen = sorted({int(step) for step in steps.split(",")})
    except ValueError:
        raise InputError(f"--steps={steps}: write all, FIRST:LAST, or steps by commas") from None
    missing = [step for step in chosen if step not in saved]
    if missing or not chosen:
        raise InputError(f"--steps={steps}: {path} has checkpoints of the steps {saved}")
    return [folder / str(step) for step in chosen]
