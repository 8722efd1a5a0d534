"""The convert command after its flags are parsed: reads a checkpoint and writes another form."""

import math
import os
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax

from jaxpretrain.checkpoints.streamed import write_streamed
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.paths import expand
from jaxpretrain.evals.tasks.package import find_tokenizer
from jaxpretrain.interop import source as sources
from jaxpretrain.interop.folding import fold
from jaxpretrain.interop.hugging_face import open_hugging_face, special_ids, write_hugging_face
from jaxpretrain.interop.olmo import open_olmo
from jaxpretrain.interop.sapiens import open_sapiens, write_sapiens
from jaxpretrain.interop.source import Source
from jaxpretrain.reports.model_card import write_card
from jaxpretrain.storage.copies import local_copy
from jaxpretrain.storage.files import unfinished
from jaxpretrain.storage.paths import file_system, is_remote, list_files
from jaxpretrain.storage.staging import local_folder
from jaxpretrain.train.trained import checkpoint_behind, experiment_of, open_source
from jaxpretrain.train.workdir import write_experiment


def convert(flags: Namespace) -> tuple[dict[str, object], list[str]]:
    """Converts by the flags of the command; returns a summary and notes for the user."""
    jax.config.update("jax_platforms", "cpu")  # an accelerator has no part in this
    source = _read(flags)
    writers: dict[str, Callable[[Source, Path], None]] = {
        "hf": partial(write_hugging_face, dtype=flags.dtype),
        "sapiens": write_sapiens,
        "sapiens_training": partial(write_sapiens, layout="training"),
        "checkpoint": write_workdir,
    }
    if flags.to != "checkpoint":
        source = fold(source)
    num_parameters = sum(math.prod(array.shape) for array in source.params.values())
    inputs = flags.merge or [flags.input]
    flag = "--merge" if flags.merge else "--input"
    is_of_run = flags.to == "hf" and flags.source == "checkpoint"
    run = checkpoint_behind(inputs[0], flag) if is_of_run else None
    with _new_folder(flags.output) as folder:
        writers[flags.to](source, folder)
        if run is not None:
            write_card(folder, run[0], run[1], num_parameters, len(inputs))
    summary: dict[str, object] = {
        "output": str(flags.output),
        "step": source.step,
        "num_parameters": num_parameters,
        "source_dtype": " and ".join(sources.types_before(source.origin)),
        "has_optimizer": flags.to == "checkpoint" and bool(source.optimizer),
    }
    if source.weights is not None:
        summary["weights"] = source.weights
    return summary, _missing(source) if flags.to == "hf" else []


def _read(flags: Namespace) -> Source:
    readers: dict[str, Callable[[Path], Source]] = {
        "hf": open_hugging_face,
        "olmo": open_olmo,
        "sapiens": partial(open_sapiens, size=flags.image_size, decoder=flags.decoder),
        "checkpoint": partial(open_source, weights=flags.weights),
    }
    if flags.merge:
        source = sources.merge([open_source(path, flags.weights) for path in flags.merge])
    else:
        # Files of other programs are read by their libraries, which know no buckets.
        is_ours = flags.source == "checkpoint"
        source = readers[flags.source](flags.input if is_ours else local_copy(flags.input))
    if flags.tokenizer is None and flags.eos_id is None:
        return source
    tokenizer = None
    if flags.tokenizer is not None:
        path = expand(flags.tokenizer, "--tokenizer")
        is_folder = (path / "tokenizer.json").is_file()  # other files may lie beside it
        tokenizer = path if is_folder else find_tokenizer(str(path))
    return sources.with_tokens(source, tokenizer, flags.eos_id)


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """Yields a temporary path for a folder, which is renamed to `output` when it is complete.

    A folder in a bucket is copied there instead, `experiment.json` or `config.json` last.
    """
    if output.exists():
        raise InputError(f"--output={output} is there already; take another name")
    temporary = unfinished(local_folder(output))
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if is_remote(output):
            _upload(temporary, output)
            return
        for path in temporary.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        temporary.rename(output)
    except OSError as error:
        raise InputError(f"--output={output}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _upload(folder: Path, output: Path) -> None:
    """Copies the files of a folder to one in a bucket; the files that tell what it is come last."""
    files = sorted(list_files(folder), key=lambda path: path.suffix == ".json")
    with ThreadPoolExecutor(8) as pool:
        for last in (False, True):
            moves = [
                (str(path), str(output / str(path.relative_to(folder))))
                for path in files
                if (path.parent == folder and path.suffix == ".json") == last
            ]
            list(pool.map(lambda move: file_system(output).put_file(*move), moves))


def write_workdir(source: Source, folder: Path) -> None:
    """Writes the folder of a run with one checkpoint."""
    folder.mkdir()
    write_experiment(folder, experiment_of(source), "", eos_id=source.eos_id)
    sources.copy_token_files(source, folder)
    parts = {"params": source.params, "optimizer": source.optimizer}
    arrays = {
        f"{part}/{name}": array for part, named in parts.items() for name, array in named.items()
    }
    write_streamed(folder / "checkpoints", source.step, arrays, {"origin": dict(source.origin)})


def _missing(source: Source) -> list[str]:
    """Returns lines about what other programs will miss in a Hugging Face folder."""
    notes = []
    if source.tokenizer_json() is None:
        notes.append("note: the input has no tokenizer.json; --tokenizer gives the output one")
    if special_ids(source).get("eos_token_id") is None:
        notes.append("note: no token is known to end documents; --eos_id tells it")
    return notes
