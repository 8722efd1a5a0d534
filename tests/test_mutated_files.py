"""Files of runs, token data and models as damage and other programs leave them.

Every JSON file is changed in many ways, always the same ones, and read by what the commands call.
A command may succeed or end in one line that names the file; it never ends in a traceback.
"""

import contextlib
import json
import math
import random
import shutil
import signal
import struct
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from jaxpretrain import show_batch
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import to_dict
from jaxpretrain.conversion import write_workdir
from jaxpretrain.data.prepare import prepare_text as preparing
from jaxpretrain.data.prepare.prepare_text import PrepareText, prepare_text
from jaxpretrain.data.text.text import TextData
from jaxpretrain.data.token_files.tokenizer import encoder, end_id, read_tokenizer, token_bytes
from jaxpretrain.evals.config import Eval
from jaxpretrain.evals.generation.generator import Generator
from jaxpretrain.evals.held_out import HeldOut
from jaxpretrain.evals.samples import Continuations
from jaxpretrain.evals.tasks.task import load_own
from jaxpretrain.interop import hugging_face
from jaxpretrain.interop.hugging_face import write_hugging_face
from jaxpretrain.interop.tensors import INDEX, write_safetensors_folder
from jaxpretrain.models.layers import RMSNorm
from jaxpretrain.models.olmo.config import Normal
from jaxpretrain.models.olmo.decoder import Decoder, DecoderModel
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.optim.schedules import Triangular
from jaxpretrain.reports.page import page
from jaxpretrain.reports.runs import read_run, read_runs
from jaxpretrain.train import run as running
from jaxpretrain.train.experiment import Checkpoint, Experiment, Monitor, Train, resolve
from jaxpretrain.train.program import Memory
from jaxpretrain.train.run import open_run, train_experiment
from jaxpretrain.train.trained import load_trained, open_source

pytest.importorskip("plotly")

Keys = tuple[str | int, ...]
Change = Callable[[Any, random.Random], Any]

WORDS = ["the", "union", "of", "states", "naïve", "漢字", "🙂", "don't", "1862"]
SECONDS = 60
"""After which a command hangs."""


class Absent:
    """What a change returns to take the value away."""


def _retyped(value: Any, random_: random.Random) -> Any:
    if isinstance(value, str):
        return random_.choice([float(value) if value.isdecimal() else 7, True])
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return random_.choice([str(value), value + 0.5, bool(value)])
    return json.dumps(value) if value is not None else 0


def _other_container(value: Any, random_: random.Random) -> Any:
    if isinstance(value, list):
        return {str(index): item for index, item in enumerate(value)}
    return list(value.values()) if isinstance(value, dict) else random_.choice([[value], {"a": 1}])


def _longer(value: Any, random_: random.Random) -> Any:
    if isinstance(value, list):
        return [*value, random_.choice([*value, 1, None, "x"])]
    if isinstance(value, dict):
        return {**value, "colour": random_.choice([*value.values(), 1])}
    return f"{value}x" if isinstance(value, str) else value


def _shorter(value: Any, random_: random.Random) -> Any:
    if isinstance(value, dict):
        return dict(list(value.items())[:-1])
    return value[:-1] if isinstance(value, str | list) else value


def _huge(value: Any, random_: random.Random) -> Any:
    return random_.choice([10**30, 2**63, 2**40, 10**400, -1, -(10**30), 0, 65536])


def _number(value: Any, random_: random.Random) -> Any:
    return random_.choice([math.nan, math.inf, -math.inf, 1e308, 1e-320, -0.5])


def _text(value: Any, random_: random.Random) -> Any:
    return random_.choice(["", "\0", "..", "/", "\ud800", "x" * 5000, "none", "nan"])


CHANGES: dict[str, Change] = {
    "deleted": lambda value, random_: Absent,
    "null": lambda value, random_: None,
    "other type": _retyped,
    "other container": _other_container,
    "longer": _longer,
    "shorter": _shorter,
    "empty": lambda value, random_: type(value)() if value is not None else {},
    "huge or negative": _huge,
    "odd float": _number,
    "odd text": _text,
    "nested": lambda value, random_: [[value]] if random_.random() < 0.5 else {"a": {"b": value}},
}
"""What becomes of one value of a document."""

DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": lambda content, random_: content[: random_.randrange(len(content))],
    "no content": lambda content, random_: b"",
    "flipped bit": lambda content, random_: _flipped(content, random_),
    "no UTF-8": lambda content, random_: _replaced(content, random_, b"\xff\xfe"),
    "zeros": lambda content, random_: _replaced(content, random_, bytes(64)),
    "other document": lambda content, random_: random_.choice(
        [b"[]", b"null", b"3", b'"x"', b"{}", b"[" * 100_000, b"[{}]"]
    ),
}
"""What becomes of the bytes of a file."""

KINDS = (*CHANGES, *CHANGES, *DAMAGES)


def _flipped(content: bytes, random_: random.Random) -> bytes:
    place = random_.randrange(len(content))
    return _replaced(content, random_, bytes([content[place] ^ 1 << random_.randrange(8)]), place)


def _replaced(
    content: bytes, random_: random.Random, new: bytes, place: int | None = None
) -> bytes:
    place = random_.randrange(len(content)) if place is None else place
    return content[:place] + new + content[place + len(new) :]


def _changed(document: Any, change: Change, random_: random.Random) -> Any:
    """The document with one value changed, which lies at any depth."""
    if isinstance(document, dict | list) and document and random_.random() < 0.9:
        keys = list(document) if isinstance(document, dict) else range(len(document))
        key = random_.choice(list(keys))
        inside = _changed(document[key], change, random_)
        copy = dict(document) if isinstance(document, dict) else list(document)
        if inside is Absent:
            del copy[key]
        else:
            copy[key] = inside
        return copy
    return change(document, random_)


def _to_bytes(document: Any) -> bytes:
    return b"" if document is Absent else json.dumps(document).encode()


@dataclass(frozen=True)
class Form:
    """How documents lie in a file."""

    change: Callable[[bytes, Change, random.Random], bytes]
    start: int = 0
    """First byte that damage may touch."""
    end: Callable[[bytes], int] = len


def _change_document(content: bytes, change: Change, random_: random.Random) -> bytes:
    return _to_bytes(_changed(json.loads(content), change, random_))


def _change_line(content: bytes, change: Change, random_: random.Random) -> bytes:
    lines = content.splitlines()
    number = random_.randrange(len(lines))
    lines[number] = _change_document(lines[number], change, random_)
    return b"".join(line + b"\n" for line in lines)


def _header_end(content: bytes) -> int:
    return 8 + struct.unpack("<Q", content[:8])[0]


def _change_header(content: bytes, change: Change, random_: random.Random) -> bytes:
    end = _header_end(content)
    header = _change_document(content[8:end], change, random_)
    return struct.pack("<Q", len(header)) + header + content[end:]


DOCUMENT, LINES = Form(_change_document), Form(_change_line)
SAFETENSORS = Form(_change_header, end=_header_end)


def mutate(content: bytes, form: Form, kind: str, random_: random.Random) -> bytes:
    """The content of a file after one mutation."""
    if kind in CHANGES:
        return form.change(content, CHANGES[kind], random_)
    end = form.end(content)
    return DAMAGES[kind](content[:end], random_) + content[end:]


@dataclass(frozen=True)
class World:
    """A folder with token data, a run on it, the model that came of it, and their config."""

    root: Path

    @property
    def run(self) -> Path:
        return self.root / "run"

    def experiment(self) -> Experiment:
        """What was trained."""
        return Experiment(
            model=Decoder(
                vocab_size=400,
                embedding_rows=512,
                d_model=32,
                num_layers=2,
                num_heads=2,
                d_ff=64,
                norm=RMSNorm(),
                norm_position="after",
                qk_norm=True,
                init=Normal(),
                tied_head=False,
                dtype="float32",
                remat="none",
            ),
            data=TextData(root=str(self.root / "tokens"), seq_len=32, verify="size"),
            optim=AdamW(
                schedule=Triangular(start=1e-4, peak=1e-2, end=1e-4, warmup="2 steps"),
                clip_norm=1.0,
            ),
            train=Train(
                duration="4 steps",
                batch_size=8,
                compiler_options={"xla_backend_optimization_level": "0"},
            ),
            eval=Eval(every="2 steps", max_examples=8, samples=Continuations(("the union",), 4)),
            checkpoint=Checkpoint(every="2 steps"),
            monitor=Monitor(every="1 steps", signals_every="2 steps", tensorboard=False),
        )


CONFIG = """
from tests.test_mutated_files import World
from pathlib import Path

def get_config():
    return World(Path(__file__).parent).experiment()
"""
BASELINE = {"name": "bigram", "nats_per_token": 4.8, "bits_per_byte": 1.4}
PLAN = {
    "target": "local",
    "fits": True,
    "memory_bytes_per_device": 2**20,
    "memory_parts": {"params": 2**19},
    "overrides": ["--config.train.microbatch_size=1"],
    "tokens_per_second": 1e4,
    "step_parts_seconds": {"compute": 0.1},
    "device_hours": 1.5,
    "cost": None,
    "largest_buffers": [{"bytes": 4096, "shapes": "f32[32,32]"}],
    "frontier": [{"overrides": [], "step_seconds": 0.1}],
}
TASK = [
    {"context": "2 + 2 =", "continuations": [" 4", " 5"], "answer": 0, "id": "a"},
    {"context": "1 + 2 =", "continuations": [" 4", " 3"], "answer": 1},
]


def _prepared(root: Path) -> PrepareText:
    return PrepareText(
        files=(str(root / "corpus.jsonl"), str(root / "more.jsonl")),
        validation_fraction=0.2,
        vocab_size=400,
        name="tiny",
        part_tokens=2000,
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    made, random_ = World(root), random.Random(0)
    texts = [" ".join(random_.choices(WORDS, k=40)) for _ in range(120)]
    lines = [json.dumps({"text": text, "id": n}) + "\n" for n, text in enumerate(texts)]
    (root / "corpus.jsonl").write_text("".join(lines[:60]))
    (root / "more.jsonl").write_text("".join(lines[60:]))
    prepare_text(_prepared(root), root / "tokens", workers=1)
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(preparing.manifests, "save_manifest", partial(_interrupt))
        prepare_text(_prepared(root), root / "unfinished", workers=1)
    (root / "config.py").write_text(CONFIG)
    (root / "task.jsonl").write_text("".join(json.dumps(item) + "\n" for item in TASK))
    assert train_experiment(resolve(made.experiment()), made.run)
    (made.run / "plan.json").write_text(json.dumps(PLAN))
    (made.run / "baselines.json").write_text(json.dumps({"rows": [BASELINE]}))
    source = open_source(made.run)
    write_hugging_face(source, root / "hf")
    with pytest.MonkeyPatch.context() as patch:
        small = partial(write_safetensors_folder, shard_bytes=100_000)
        patch.setattr(hugging_face, "write_safetensors_folder", small)
        write_hugging_face(source, root / "sharded")
    assert (root / "sharded" / INDEX).exists()
    return made


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def remembered(make: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a config that makes what is the same for equal configs once."""

    def get(config: Any, *args: Any, **kwargs: Any) -> Any:
        key = make.__qualname__, json.dumps(to_dict(config)), repr((args, kwargs))
        if key not in _made:
            _made[key] = make(config, *args, **kwargs)
        return _made[key]

    return get


_made: dict[tuple[str, ...], Any] = {}
_axes = cache(DecoderModel.axes)


@contextlib.contextmanager
def without_computing() -> Iterator[None]:
    """Models are traced once, and nothing is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "build", remembered(Decoder.build))
        patch.setattr(DecoderModel, "axes", _axes)
        patch.setattr(running, "make_stages", remembered(running.make_stages))
        patch.setattr(running, "require_fit", lambda *_: Memory(*[0] * 5))
        patch.setattr(running.loop, "train", lambda *_: True)
        patch.setattr(HeldOut, "compile", lambda *_: None)
        yield


# What the commands do with what they read, short of computing.


def report(world: World) -> None:
    run = read_run(world.run)
    page([run]).encode()
    assert run.severity in (None, "info", "warning", "error")


def compare(world: World) -> None:
    page(read_runs([world.run, world.root / "intact"])).encode()


def _load(path: Path) -> None:
    """As evaluate and sample do."""
    trained = load_trained(path)
    if path.name == "run":
        sets = trained.experiment.data.open_evals(limits=trained.model.input_limits())
        trained.experiment.eval.build(trained.setting(sets))
    if trained.tokenizer_path is not None:
        Generator(trained.model, trained.layout, trained.tokenizer_path).encode("the union")


def load_run(world: World) -> None:
    _load(world.run)


def load_hf(world: World) -> None:
    _load(world.root / "hf")


def load_sharded(world: World) -> None:
    _load(world.root / "sharded")


def _convert(world: World, name: str) -> None:
    source = open_source(world.root / name)
    for write in (write_hugging_face, write_workdir):
        try:
            write(source, world.root / "converted")
        finally:
            shutil.rmtree(world.root / "converted", ignore_errors=True)


def convert_run(world: World) -> None:
    _convert(world, "run")


def convert_hf(world: World) -> None:
    _convert(world, "hf")


def convert_sharded(world: World) -> None:
    _convert(world, "sharded")


def resume(world: World) -> None:
    """All that `main` does before it compiles; in a copy, which it changes."""
    copy = shutil.copytree(world.run, world.root / "resumed")
    try:
        train_experiment(resolve(world.experiment()), copy)
    finally:
        shutil.rmtree(copy)


def begin(world: World) -> None:
    open_run(resolve(world.experiment()), world.root / "new", allow_config_change=False)


def show(world: World) -> None:
    show_batch.main([f"--config={world.root / 'config.py'}", "--step=1"])


def prepare(world: World) -> None:
    """Finds the data made."""
    prepare_text(_prepared(world.root), world.root / "tokens", workers=1)


def go_on_preparing(world: World) -> None:
    copy = shutil.copytree(world.root / "unfinished", world.root / "finished")
    try:
        prepare_text(_prepared(world.root), copy, workers=1)
    finally:
        shutil.rmtree(copy)


def read_corpus(world: World) -> None:
    output = world.root / "again"
    try:
        prepare_text(_prepared(world.root), output, workers=1)
    finally:
        shutil.rmtree(output, ignore_errors=True)


def use_tokenizer(world: World) -> None:
    """A tokenizer.json that nothing vouches for."""
    path = world.root / "tokens" / "tokenizer.json"
    text = read_tokenizer(path)
    token_bytes(text)
    end_id(text)
    encoder(text, path).encode("the union of states 🙂")


def read_task(world: World) -> None:
    task = load_own(world.root / "task.jsonl", "task")
    encode = encoder(read_tokenizer(world.root / "tokens" / "tokenizer.json")).encode_batch
    encode([choice.context + choice.continuation for i in task.items for choice in i.choices])


@dataclass(frozen=True)
class Target:
    """A file, and the commands that read it."""

    path: str
    form: Form
    commands: tuple[Callable[[World], None], ...]
    many: int = 60
    """Mutations of the long test."""


STEP = "run/checkpoints/4"
TARGETS = (
    Target("tokens/manifest.json", DOCUMENT, (begin, prepare, show)),
    Target("tokens/tokenizer.json", DOCUMENT, (begin, use_tokenizer)),
    Target("unfinished/unfinished.json", DOCUMENT, (go_on_preparing,), many=20),
    Target("unfinished/train/part-00000.json", DOCUMENT, (go_on_preparing,)),
    Target("corpus.jsonl", LINES, (read_corpus,), many=30),
    Target("task.jsonl", LINES, (read_task,)),
    Target("run/experiment.json", DOCUMENT, (report, compare, load_run, convert_run, resume), 140),
    Target("run/metrics.jsonl", LINES, (report, resume), many=80),
    Target("run/signals.jsonl", LINES, (report, resume), many=80),
    Target("run/samples.jsonl", LINES, (report, resume), many=60),
    Target("run/plan.json", DOCUMENT, (report,)),
    Target("run/baselines.json", DOCUMENT, (report,)),
    Target("run/tokenizer.json", DOCUMENT, (load_run, convert_run, resume), many=30),
    Target(f"{STEP}/meta/metadata", DOCUMENT, (load_run, convert_run, resume), many=80),
    Target(f"{STEP}/_CHECKPOINT_METADATA", DOCUMENT, (load_run, convert_run, resume), many=30),
    Target(f"{STEP}/state/_METADATA", DOCUMENT, (load_run, convert_run, resume), many=30),
    Target(f"{STEP}/state/_sharding", DOCUMENT, (load_run, resume), many=20),
    Target("hf/config.json", DOCUMENT, (load_hf, convert_hf), many=120),
    Target("hf/generation_config.json", DOCUMENT, (convert_hf,), many=20),
    Target("hf/tokenizer.json", DOCUMENT, (load_hf, convert_hf)),
    Target("hf/tokenizer_config.json", DOCUMENT, (load_hf, convert_hf), many=20),
    Target("hf/model.safetensors", SAFETENSORS, (load_hf, convert_hf), many=60),
    Target(f"sharded/{INDEX}", DOCUMENT, (load_sharded, convert_sharded)),
)


@dataclass(frozen=True)
class Failure:
    """A command that ended in something else than success or one line."""

    path: str
    kind: str
    number: int
    command: str
    error: str
    where: str


def _timeout(*_: Any) -> None:
    raise TimeoutError(f"hangs for {SECONDS} seconds")


def _run(command: Callable[[World], None], world: World) -> BaseException | None:
    """What it raises."""
    signal.signal(signal.SIGALRM, _timeout)
    signal.alarm(SECONDS)
    try:
        with without_computing():
            command(world)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return error
    finally:
        signal.alarm(0)
    return None


def mutations(
    world: World, target: Target, numbers: Iterable[int]
) -> Iterator[tuple[int, str, bytes]]:
    """(number, kind, content) of those mutations of a file that change it; always the same."""
    content = (world.root / target.path).read_bytes()
    for number in numbers:
        kind = KINDS[number % len(KINDS)]
        mutated = mutate(content, target.form, kind, random.Random(f"{target.path} {number}"))
        if mutated != content:
            yield number, kind, mutated


def failures(world: World, target: Target, numbers: Iterable[int]) -> list[Failure]:
    """What comes of those mutations of one file."""
    path, found = world.root / target.path, []
    content = path.read_bytes()
    try:
        for number, kind, mutated in mutations(world, target, numbers):
            path.write_bytes(mutated)
            for command in target.commands:
                error = _run(command, world)
                # Where files contradict each other, a line may name another one of them.
                names = (path.name, str(world.root))
                if error is None or (
                    isinstance(error, InputError) and any(name in str(error) for name in names)
                ):
                    continue
                frame = traceback.extract_tb(error.__traceback__)[-1]
                text = f"{type(error).__name__}: {str(error)[:200]}"
                where = f"{Path(frame.filename).name}:{frame.lineno}"
                found.append(Failure(target.path, kind, number, command.__name__, text, where))
    finally:
        path.write_bytes(content)
    return found


@pytest.fixture(scope="module", autouse=True)
def _intact(world: World) -> None:
    shutil.copytree(world.run, world.root / "intact")


def test_a_few_mutations_of_each_file_end_in_one_line(world: World):
    assert not [f for n, target in enumerate(TARGETS) for f in failures(world, target, [n])]


def test_the_mutations_are_many_and_of_all_kinds(world: World):
    kinds = Counter(kind for t in TARGETS for _, kind, _ in mutations(world, t, range(t.many)))
    print(f"{sum(kinds.values())} mutations: {dict(kinds)}")
    assert sum(kinds.values()) >= 1000
    assert kinds.keys() == set(KINDS) and min(kinds.values()) >= 20


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.path)
def test_many_mutations_of_each_file_end_in_one_line(world: World, target: Target):
    assert not failures(world, target, range(target.many))
