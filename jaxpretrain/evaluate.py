"""A checkpoint to scores: python -m jaxpretrain.evaluate --checkpoint=DIR --tasks=arc_easy,piqa

Without --tasks, --harness and --perplexity: what the run itself evaluates, on its own data.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpretrain.config.command import Parser, run, split_paths
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.paths import as_path, expand
from jaxpretrain.parallel.host_memory import use_huge_pages

if TYPE_CHECKING:  # imported after the flags: they import JAX
    from jaxpretrain.evals.evaluation import Asked
    from jaxpretrain.evals.harness import Harness
    from jaxpretrain.evals.outcome import Outcome
    from jaxpretrain.train.trained import Trained

    Evaluate = Callable[[int, Any], Outcome]  # (step, parameters) -> outcome


def main(argv: list[str]) -> int:
    """Evaluates one checkpoint or several of a run; prints tables and writes the files."""
    parser = _parser()
    flags = parser.parse_args(argv)
    for name in ("output", "predictions"):
        path = getattr(flags, name)
        if path is not None and not path.parent.is_dir():
            raise InputError(f"--{name}={path}: there is no folder {path.parent}")
    outcomes = []
    for outcome in _evaluate(flags):
        outcomes.append(outcome)
        print(outcome.table(), file=sys.stderr if flags.json else sys.stdout)
    document = outcomes[-1].document()
    if len(outcomes) > 1:
        document["steps"] = [outcome.document() for outcome in outcomes]
    _write(flags, outcomes, document)
    if flags.json:
        print(json.dumps(document))
    return 0


def _parser() -> Parser:
    parser = Parser(prog="python -m jaxpretrain.evaluate", description=__doc__)
    add = parser.add_argument
    add("--checkpoint", type=as_path, required=True, help="a run, one of its steps, or a HF folder")
    add("--steps", help="steps of a run: all, FIRST:LAST, or some by commas")
    add("--tasks", default="", help="tasks, groups and FILE.jsonl, by commas")
    add("--limit", type=int, help="at most so many items of each task")
    add("--subset_seed", type=int, help="draw the items of --limit; default: the first ones")
    add("--perplexity", action="append", default=[], help="NAME=FILE.npy,... raw token ids")
    add("--harness", default="", help="tasks of lm-evaluation-harness, by commas")
    add("--harness_folder", type=as_path, help="YAML files of more such tasks")
    add("--num_fewshot", type=int, help="examples before their questions; default: the task's")
    add("--pictures", type=as_path, help="folder for the pictures that a run itself makes")
    add(
        "--tokenizer",
        type=as_path,
        help="tokenizer.json, or one that make evals brings; default: the model's",
    )
    add("--weights", choices=("plain", "average"), help="default: those that the run evaluates")
    add("--dtype", choices=("bfloat16", "float32"), help="compute in it; default: as trained")
    add("--token_dtype", choices=("uint16", "uint32"), help="of FILE.npy; default: the smallest")
    trust = "read it so, whatever the ids look like: for files that are mostly padding"
    add("--trust_token_dtype", action="store_true", default=None, help=trust)
    add("--batch_tokens", type=int, default=4096, help="tokens of a batch, a device")
    add("--output", type=as_path, help="FILE.json to write; FILE.csv appears beside it")
    add("--predictions", type=as_path, help="FILE.jsonl to write, a line an item")
    add("--json", action="store_true", help="one JSON document on standard output")
    return parser


def _evaluate(flags: Any) -> Iterator["Outcome"]:
    """The outcome of each checkpoint in turn, all by what was compiled for the first one."""
    from jaxpretrain.evals.tasks.package import find_tokenizer
    from jaxpretrain.parallel.compilation import keep_compiled
    from jaxpretrain.train.trained import load_trained

    keep_compiled()
    asked = None if _is_own(flags) else _asked(flags)
    tokenizer = None if flags.tokenizer is None else find_tokenizer(str(flags.tokenizer))
    evaluate = None
    for path in _checkpoints(flags.checkpoint, flags.steps):
        trained = load_trained(path, flags.weights)
        if evaluate is None:
            evaluate = (
                _own(trained, flags.pictures)
                if asked is None
                else _evaluation(trained, flags, asked, tokenizer)
            )
        yield replace(evaluate(trained.step, trained.params), weights=trained.weights)


def _is_own(flags: Any) -> bool:
    """Whether nothing is named, so that it is what the run itself evaluates.

    Raises:
      InputError: a flag would do nothing.
    """
    uses = {
        "tasks": ("subset_seed", "predictions"),
        "harness": ("harness_folder", "num_fewshot"),
        "perplexity": ("token_dtype", "trust_token_dtype"),
    }
    for name, others in uses.items():
        for other in others:
            if getattr(flags, other) is not None and not getattr(flags, name):
                raise InputError(f"--{other} is for --{name}, which is not given")
    named = flags.tasks or flags.perplexity or flags.harness
    if named and flags.pictures is not None:
        raise InputError("--pictures is for what the run itself evaluates; name nothing else")
    return not named


def _own(trained: "Trained", pictures: Path | None) -> "Evaluate":
    """What the run of the checkpoint evaluates while it trains."""
    from jaxpretrain.evals.outcome import Outcome
    from jaxpretrain.monitor.pictures import write_pictures

    evaluators = trained.experiment.eval.build(trained.setting())

    def evaluate(step: int, params: Any) -> Outcome:
        results = [evaluator(params) for evaluator in evaluators]
        for result in results:
            if pictures is not None:
                write_pictures(pictures, step, result.images)
        scalars = {name: x for result in results for name, x in result.scalars.items()}
        return Outcome(step, own=scalars)

    return evaluate


def _evaluation(
    trained: "Trained", flags: Any, asked: "Asked", tokenizer: Path | None
) -> "Evaluate":
    """The tasks and files that the flags name."""
    from jaxpretrain.evals.evaluation import Evaluation
    from jaxpretrain.evals.scoring.scorer import Scorer
    from jaxpretrain.train.program import build_model

    model, layout = trained.model, trained.layout
    if flags.dtype is not None:
        changed = replace(trained.experiment.model, dtype=flags.dtype)
        model = build_model(replace(trained.experiment, model=changed), layout)
    batch_tokens = flags.batch_tokens * layout.num_data
    scorer = Scorer(model, layout, trained.params, batch_tokens=batch_tokens)
    return Evaluation(scorer, tokenizer or trained.tokenizer_path, asked, trained.end_ids)


def _asked(flags: Any) -> "Asked":
    """What the flags ask for.

    Raises:
      InputError: a name is unknown, twice there, or a number cannot be.
    """
    from jaxpretrain.evals.evaluation import Asked
    from jaxpretrain.evals.tasks.catalogue import select

    sets: dict[str, list[Path]] = {}
    for text in flags.perplexity:
        name, equals, files = text.partition("=")
        if not (name and equals and files):
            raise InputError(f"--perplexity={text}: write NAME=FILE.npy, or several by commas")
        if name in sets:
            raise InputError(f"--perplexity={text}: there is a set {name} already")
        sets[name] = [expand(file, "--perplexity") for file in split_paths(files)]
    if flags.limit is not None and flags.limit < 1:
        raise InputError(f"--limit={flags.limit}: must be positive")
    if flags.batch_tokens < 1:
        raise InputError(f"--batch_tokens={flags.batch_tokens}: must be positive")
    if flags.num_fewshot is not None and flags.num_fewshot < 0:
        raise InputError(f"--num_fewshot={flags.num_fewshot}: must not be negative")
    selection = select(split_paths(flags.tasks))
    selection = selection.take(flags.limit, flags.subset_seed)
    trust = bool(flags.trust_token_dtype)
    return Asked(selection, sets, _harness(flags), flags.token_dtype, trust_token_dtype=trust)


def _harness(flags: Any) -> "Harness | None":
    names = tuple(name for name in flags.harness.split(",") if name)
    if not names:
        return None
    if flags.harness_folder is not None and not flags.harness_folder.is_dir():
        raise InputError(f"--harness_folder={flags.harness_folder}: no such folder")
    from jaxpretrain.evals.harness import Harness, HarnessTasks

    return Harness(HarnessTasks(names, flags.harness_folder, flags.num_fewshot, flags.limit))


def _checkpoints(path: Path, steps: str | None) -> list[Path]:
    """The checkpoints of `--checkpoint` and `--steps`, in order of their steps."""
    if steps is None:
        return [path]
    from jaxpretrain.checkpoints.orbax import Checkpoints

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


def _write(flags: Any, outcomes: list["Outcome"], document: dict[str, Any]) -> None:
    from jaxpretrain.evals.outcome import to_csv
    from jaxpretrain.storage.files import write_atomically

    if flags.output is not None:
        write_atomically(flags.output, json.dumps(document, indent=2) + "\n")
        write_atomically(flags.output.with_suffix(".csv"), to_csv(outcomes))
    if flags.predictions is not None:
        lines = [line for outcome in outcomes for line in outcome.predictions()]
        write_atomically(flags.predictions, "\n".join(lines) + "\n")


if __name__ == "__main__":
    use_huge_pages()
    run(main)
