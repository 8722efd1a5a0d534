"""Checkpoints of other programs to a run's folder, and back.

    python -m jaxpretrain.convert --from=hf --input=OLMo-2-1B --output=runs/olmo2
    python -m jaxpretrain.convert --from=olmo --input=step1000-unsharded --output=runs/olmo
    python -m jaxpretrain.convert --to=hf --input=runs/mine --output=mine-hf
    python -m jaxpretrain.convert --from=sapiens --input=sapiens_1b.pth --output=runs/sapiens
    python -m jaxpretrain.convert --merge=runs/a,runs/b,runs/c --output=runs/soup

Weights pass through memory an array or a layer at a time. The output appears whole or not at all.
"""

import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpretrain.config.command import Parser, run
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.paths import as_path, expand
from jaxpretrain.storage.files import TEMPORARY

if TYPE_CHECKING:
    from jaxpretrain.interop.source import Source


def main(argv: list[str]) -> int:
    """Converts, then prints one line, or one JSON document, about what was written."""
    parser = _parser()
    flags = parser.parse_args(argv)
    merged = (
        [] if flags.merge is None else [expand(path, "--merge") for path in flags.merge.split(",")]
    )
    _check(parser, flags, merged)

    import jax  # after the flags: it takes its time

    jax.config.update("jax_platforms", "cpu")  # an accelerator has no part in this
    from jaxpretrain.interop.hugging_face import open_hugging_face, write_hugging_face
    from jaxpretrain.interop.merge import merge
    from jaxpretrain.interop.olmo import open_olmo
    from jaxpretrain.interop.sapiens import open_sapiens, write_sapiens
    from jaxpretrain.interop.source import types_before, with_tokens
    from jaxpretrain.train.trained import open_source

    readers: dict[str, Callable[[Path], Source]] = {
        "hf": open_hugging_face,
        "olmo": open_olmo,
        "sapiens": partial(open_sapiens, size=flags.image_size, decoder=flags.decoder),
        "checkpoint": partial(open_source, weights=flags.weights),
    }
    writers: dict[str, Callable[[Source, Path], None]] = {
        "hf": partial(write_hugging_face, dtype=flags.dtype),
        "sapiens": write_sapiens,
        "sapiens_training": partial(write_sapiens, layout="training"),
        "checkpoint": write_workdir,
    }
    if merged:
        source = merge([open_source(path, flags.weights) for path in merged])
    else:
        source = readers[flags.source](flags.input)
    if flags.tokenizer is not None or flags.eos_id is not None:
        tokenizer = None if flags.tokenizer is None else _find_tokenizer(flags.tokenizer)
        source = with_tokens(source, tokenizer, flags.eos_id)
    with new_folder(flags.output) as folder:
        writers[flags.to](source, folder)
    summary = {
        "output": str(flags.output),
        "step": source.step,
        "num_parameters": sum(math.prod(array.shape) for array in source.params.values()),
        "source_dtype": " and ".join(types_before(source.origin)),
        "has_optimizer": flags.to == "checkpoint" and bool(source.optimizer),
    }
    if source.weights is not None:
        summary["weights"] = source.weights
    if flags.to == "hf":
        for note in _missing(source):
            print(note, file=sys.stderr)
    print(json.dumps(summary) if flags.json else _describe(summary))
    return 0


def _check(parser: Parser, flags: Any, merged: list[Path]) -> None:
    """Refuses flags that do not go together."""
    if (flags.input is None) == (flags.merge is None):
        parser.error("give either --input, or --merge with two checkpoints or more")
    if len(merged) == 1:
        parser.error("--merge needs two checkpoints or more, with commas between them")
    if merged and flags.source != "checkpoint":
        parser.error("--merge takes checkpoints as they are; convert others first")
    if flags.source != "sapiens" and (flags.image_size or flags.decoder != "required"):
        parser.error("--image_size and --decoder go with --from=sapiens")
    if flags.weights is not None and flags.source != "checkpoint":
        parser.error("--weights goes with checkpoints of ours, which may keep an average")
    if flags.dtype is not None and flags.to != "hf":
        parser.error("--dtype goes with --to=hf; checkpoints are float32")


def _parser() -> Parser:
    parser = Parser(prog="python -m jaxpretrain.convert", description=__doc__)
    add = parser.add_argument
    add("--input", type=as_path, help="folder to read")
    add("--output", type=as_path, required=True, help="folder to make")
    add(
        "--from",
        dest="source",
        choices=("checkpoint", "hf", "olmo", "sapiens"),
        default="checkpoint",
        help="form of the input: what other commands take as --checkpoint, a Hugging Face folder, "
        "an unsharded checkpoint of OLMo's trainer, or a .pth file of Sapiens",
    )
    add(
        "--to",
        choices=("checkpoint", "hf", "sapiens", "sapiens_training"),
        default="checkpoint",
        help="form of the output: a run's folder, a Hugging Face folder, or a folder with a "
        "sapiens.pth: the encoder, as it is released, or all of the model",
    )
    add("--dtype", choices=("bfloat16", "float32"), help="with --to=hf; default: as it once was")
    add("--image_size", type=int, help="with --from=sapiens: resize its positions to such images")
    add(
        "--decoder",
        choices=("required", "fresh"),
        default="required",
        help="with --from=sapiens: what becomes of an encoder without its decoder",
    )
    add(
        "--weights",
        choices=("plain", "average"),
        help="of a run that keeps an average; default: those that it evaluates",
    )
    add("--tokenizer", help="tokenizer.json, a folder with one, or one that make evals brings")
    add("--eos_id", type=int, help="token that ends documents, where the input does not tell it")
    add("--merge", metavar="A,B,...", help="checkpoints to average, instead of --input")
    add("--json", action="store_true", help="one JSON document on standard output")
    return parser


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A path for a folder that takes its name `output` when all of it is on the disk.

    Raises:
      InputError: there is something of that name already, or it cannot be made.
    """
    if output.exists():
        raise InputError(f"--output={output} is there already; take another name")
    temporary = output.with_name(f"{output.name}{TEMPORARY}{os.getpid()}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        temporary.rename(output)
    except OSError as error:
        raise InputError(f"--output={output}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_workdir(source: "Source", folder: Path) -> None:
    """Writes the folder of a run with one checkpoint."""
    from jaxpretrain.checkpoints.streamed import write_streamed
    from jaxpretrain.interop.source import copy_token_files
    from jaxpretrain.train.trained import experiment_of
    from jaxpretrain.train.workdir import write_experiment

    folder.mkdir()
    write_experiment(folder, experiment_of(source), "", eos_id=source.eos_id)
    copy_token_files(source, folder)
    parts = {"params": source.params, "optimizer": source.optimizer}
    arrays = {
        f"{part}/{name}": array for part, named in parts.items() for name, array in named.items()
    }
    write_streamed(folder / "checkpoints", source.step, arrays, {"origin": dict(source.origin)})


def _find_tokenizer(name: str) -> Path:
    """The folder of a tokenizer, for what lies beside it, or its file alone."""
    from jaxpretrain.evals.tasks.package import find_tokenizer

    path = expand(name, "--tokenizer")
    if (path / "tokenizer.json").is_file():
        return path
    is_path = path.exists() or path.suffix or len(path.parts) > 1
    if is_path and not path.is_file():
        raise InputError(f"--tokenizer={name}: no such tokenizer.json, and no folder with one")
    return find_tokenizer(name)


def _missing(source: "Source") -> Iterator[str]:
    """Lines about what others will miss in a Hugging Face folder."""
    from jaxpretrain.interop.hugging_face import special_ids

    if source.tokenizer_json() is None:
        yield "note: the input has no tokenizer.json; --tokenizer gives the output one"
    if special_ids(source).get("eos_token_id") is None:
        yield "note: no token is known to end documents; --eos_id tells it"


def _describe(summary: dict) -> str:
    weights = f" ({summary['weights']} weights)" if "weights" in summary else ""
    moments = ", with the state of its optimizer" if summary["has_optimizer"] else ""
    return (
        f"{summary['output']}: step {summary['step']:,}, {summary['num_parameters']:,} parameters"
        f" that were {summary['source_dtype']}{moments}{weights}"
    )


if __name__ == "__main__":
    run(main)
