"""The table "To add ..., touch ..." of docs/architecture.md is true: each thing is added and run.

A copy of the package is edited in the files that the table names and in no other, then one run
trains with all that was added.
"""

import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

Edit = Callable[[str], str]
"""Makes the new text of a file out of the old one, which is "" for a file that is new."""


def replaced(old: str, new: str) -> Edit:
    """Returns an edit of the one place where `old` stands."""

    def edit(text: str) -> str:
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times"
        return text.replace(old, new)

    return edit


def new(text: str) -> Edit:
    """Returns an edit that writes a new file."""

    def edit(before: str) -> str:
        assert not before
        return textwrap.dedent(text)

    return edit


def both(*edits: Edit) -> Edit:
    """Returns edits of one file, one after the other."""

    def edit(text: str) -> str:
        for each in edits:
            text = each(text)
        return text

    return edit


def promised(module: str, name: str) -> Edit:
    """Returns an edit of `api.py` that adds a name of a module."""
    first = "if TYPE_CHECKING:  # for type checkers and for `_homes`\n"
    return replaced(first, f"{first}    from {module} import {name} as {name}\n")


SCHEDULE = '''
@dataclass(frozen=True, kw_only=True)
class Sawtooth(_Warmed):
    """A linear rise to half the peak."""

    def _after(self, warmup: int, num_steps: int) -> list[Segment]:
        return [Segment("teeth", warmup, optax.constant_schedule(self.peak / 2))]


Plain = Sawtooth | '''

OPTIMIZER = '''
@dataclass(frozen=True)
class Signs(Shared):
    """The signs of the gradients."""

    def _parts(self, params):
        signs = optax.stateless(lambda updates, params: jax.tree.map(jnp.sign, updates))
        return [("signs", signs), self._decay(params)]


OptimizerChoice = Signs | '''

SOURCE = '''
"""Sequences that count up."""

from dataclasses import dataclass

import numpy as np

from jaxpretrain.data.contract import DataConfig, EvalSet, TrainingData


@dataclass(frozen=True, kw_only=True)
class Counting(DataConfig):
    """Sequences that count up from the number of the sample."""

    seq_len: int = 8
    """Tokens of a sequence."""

    def example_spec(self):
        return {"tokens": ((self.seq_len,), "int32")}

    def units_per_example(self):
        return "tokens", self.seq_len

    def open(self, *, seed, limits):
        return Counted(num_examples=64, fingerprint="counting", seq_len=self.seq_len)

    def open_evals(self, *, limits):
        return [HeldOut(name="counted", num_examples=4, seq_len=self.seq_len)]


@dataclass(frozen=True, kw_only=True)
class Counted(TrainingData):
    """Sequences for training."""

    seq_len: int

    def batch(self, samples):
        return rows(samples, self.seq_len)

    def describe(self):
        return "numbers that count up"


@dataclass(frozen=True, kw_only=True)
class HeldOut(EvalSet):
    """Sequences for evaluation."""

    seq_len: int

    def batch(self, indices):
        return rows(indices, self.seq_len)


def rows(numbers, seq_len):
    """Returns sequences that count up from numbers."""
    tokens = (np.asarray(numbers)[:, None] + np.arange(seq_len)) % 64
    return {"tokens": tokens.astype(np.int32)}
'''

EVALUATOR = '''
"""The number of parameters."""

from dataclasses import dataclass

import jax

from jaxpretrain.evals.contract import Evaluation, Evaluator, Results


@dataclass(frozen=True)
class Census(Evaluation):
    """Counts the parameters."""

    times: int = 1
    """Multiple of the count that is reported."""

    def build(self, setting):
        return Counter(self.times)


class Counter(Evaluator):
    """Counts the parameters."""

    def __init__(self, times):
        self.times = times

    def __call__(self, params):
        count = sum(x.size for x in jax.tree.leaves(params))
        return Results(scalars={"eval/model/census": float(self.times * count)})
'''

FINDING = '''
"""A run of three steps."""

from jaxpretrain.diagnosis.findings import Finding


def third_step(history, plan):
    """Yields a finding at step 3."""
    if history.step >= 3:
        yield Finding("third_step", 3, 3, "Step 3 was made.", "Nothing to do.", {}, "info")
'''

CHIP = """_ROWS = (
    Chip(
        name="abacus-1gb",
        platform="gpu",
        device_kind="Abacus",
        peak_bf16_flops=1e12,
        efficiency=_A100.efficiency,
        cores=_A100.cores,
        memory_bytes=2**30,
        usable=0.9,
        memory_bandwidth=1e11,
        link_bandwidth=1e10,
        network_bandwidth=1e9,
        devices_per_host=8,
        source="an abacus",
    ),
"""

EDITS: dict[str, dict[str, Edit]] = {
    "a learning-rate schedule": {
        "jaxpretrain/optim/schedules.py": replaced("\nPlain = ", SCHEDULE),
        "jaxpretrain/api.py": promised("jaxpretrain.optim.schedules", "Sawtooth"),
    },
    "an optimizer": {
        "jaxpretrain/optim/optimizers.py": replaced("\nOptimizerChoice = ", OPTIMIZER),
        "jaxpretrain/api.py": promised("jaxpretrain.optim.optimizers", "Signs"),
    },
    "a model size": {
        "jaxpretrain/models/olmo/variants.py": replaced(
            "\nOLMO_SIZES: dict[str, Decoder] = {\n",
            "\nOLMO_SIZES: dict[str, Decoder] = {\n"
            '    "mini": replace(_OLMO_1, d_model=16, num_layers=1, num_heads=2, d_ff=32,'
            ' vocab_size=64, embedding_rows=64, dtype="float32"),\n',
        ),
    },
    "a data source": {
        "jaxpretrain/data/counting.py": new(SOURCE),
        "jaxpretrain/data/sources.py": both(
            replaced(
                "from jaxpretrain.data.images.images import ImageData\n",
                "from jaxpretrain.data.counting import Counting\n"
                "from jaxpretrain.data.images.images import ImageData\n",
            ),
            replaced("\nDataChoice = ", "\nDataChoice = Counting | "),
        ),
        "jaxpretrain/api.py": promised("jaxpretrain.data.counting", "Counting"),
    },
    "an evaluation": {
        "jaxpretrain/evals/census.py": new(EVALUATOR),
        "jaxpretrain/evals/config.py": both(
            replaced(
                "from jaxpretrain.evals.samples",
                "from jaxpretrain.evals.census import Census\nfrom jaxpretrain.evals.samples",
            ),
            replaced(
                "\n    def build(",
                '\n    census: Census | None = None\n    """Counts."""\n\n    def build(',
            ),
        ),
        "jaxpretrain/api.py": promised("jaxpretrain.evals.census", "Census"),
    },
    "a finding": {
        "jaxpretrain/diagnosis/rules/third.py": new(FINDING),
        "jaxpretrain/diagnosis/rules/__init__.py": both(
            replaced("    speed,\n)", "    speed,\n    third,\n)"),
            replaced(
                "\nRULES: tuple[Rule, ...] = (\n",
                '\nRULES: tuple[Rule, ...] = (\n    Rule("third_step", third.third_step),\n',
            ),
        ),
    },
    "a chip": {"jaxpretrain/devices/chips.py": replaced("_ROWS = (\n", CHIP)},
}
"""What the table calls a thing -> the files that are touched for a toy of that kind."""

CONFIG = """
from jaxpretrain.api import OLMO_SIZES, Checkpoint, Eval, Experiment, Mesh, Monitor, Train
from jaxpretrain.api import Census, Counting, Sawtooth, Signs


def get_config():
    return Experiment(
        model=OLMO_SIZES["mini"],
        data=Counting(seq_len=8),
        optim=Signs(schedule=Sawtooth(peak=2**-6, warmup="2 steps")),
        train=Train(duration="4 steps", batch_size=8),
        eval=Eval(every="4 steps", census=Census(times=2)),
        checkpoint=Checkpoint(every=0),
        monitor=Monitor(every=1, tensorboard=False, stop_on=("third_step",)),
    )
"""

RUN = """
import json, pathlib
from jaxpretrain.main import main
from jaxpretrain.devices.chips import CHIPS

assert main(["--config=config.py", "--workdir=run"]) == 0
rows = [json.loads(line) for line in pathlib.Path("run/metrics.jsonl").open()]
merged = {name: value for row in rows for name, value in row.items()}
assert merged["train/learning_rate"] == 2**-7, merged  # half the peak
assert merged["eval/model/census"] > 0 and merged["eval/counted/loss"] > 0, merged
assert CHIPS["abacus-1gb"].device_kind == "Abacus"
print("all were used")
"""


def table() -> dict[str, set[str]]:
    """Returns what the table in the docs says: a thing -> the files to touch."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    _, _, after = text.partition("| To add | Touch |\n| --- | --- |\n")
    rows = after.partition("\n\n")[0].splitlines()
    found = {}
    for row in rows:
        thing, files = row.strip("| ").split(" | ")
        found[thing] = set(re.findall(r"`(jaxpretrain/[\w/.]+)`", files))
    return found


def test_the_table_names_the_files_that_are_touched() -> None:
    def shape(files: Iterable[str]) -> set[str]:
        """The files, with NAME for the name of one that is new."""
        return {n if (ROOT / n).exists() else f"{n.rpartition('/')[0]}/NAME.py" for n in files}

    assert table() == {thing: shape(files) for thing, files in EDITS.items()}


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package that has a toy of each kind."""
    folder = tmp_path_factory.mktemp("extended")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "jaxpretrain", folder / "jaxpretrain", ignore=ignored)
    for edits in EDITS.values():
        for name, edit in edits.items():
            path = folder / name
            path.write_text(edit(path.read_text() if path.exists() else ""))
    (folder / "config.py").write_text(CONFIG)
    (folder / "use.py").write_text(RUN)
    return folder


def test_what_is_added_so_trains(extended: Path) -> None:
    done = subprocess.run(
        [sys.executable, "use.py"], cwd=extended, capture_output=True, text=True, check=False
    )
    assert done.stdout.endswith("all were used\n"), done.stdout + done.stderr
    assert "note: third step. Step 3 was made." in done.stderr
