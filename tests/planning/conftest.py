"""Small experiments of both families, and machines of the CPU devices that tests have."""

import math
from collections.abc import Sequence
from typing import ClassVar

import jax
import pytest

from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.data.images.image_sources import Folder
from jaxpretrain.data.images.images import ImageData
from jaxpretrain.data.text.text import TextData
from jaxpretrain.devices.chips import Chip, Efficiency
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.sapiens.model import VitMae
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.planning.compiled import Compiled, InProcessCompiler
from jaxpretrain.planning.machines import Machine, parse_target
from jaxpretrain.planning.planner import Plan, make_plan
from jaxpretrain.planning.search import MICROBATCH
from jaxpretrain.train.experiment import Experiment, Train, resolve

TRAIN = Train(
    duration="10 steps",
    batch_size=16,
    compiler_options={"xla_backend_optimization_level": "0"},  # quick to compile
)


TINY = '''
"""A tiny decoder.

Hardware  {hardware}, or another one.
"""

from jaxpretrain.data.text.text import TextData
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.train.experiment import Experiment, Train


def get_config():
    model = Decoder(
        vocab_size=257, embedding_rows=264, d_model=32, num_layers=2, num_heads=4, d_ff={d_ff}
    )
    return Experiment(model, TextData(seq_len=32), AdamW(), Train(batch_size=16))
'''
"""The file of a tiny config that states its hardware, with `hardware` and `d_ff` to fill in."""


@pytest.fixture(scope="session")
def decoder() -> Experiment:
    """A tiny decoder; its batch is 16."""
    model = Decoder(
        vocab_size=251,
        embedding_rows=256,
        d_model=32,
        num_layers=4,
        num_heads=4,
        d_ff=64,
        dtype="float32",
        remat="full",
    )
    return resolve(Experiment(model, TextData(seq_len=64), AdamW(), TRAIN))


@pytest.fixture(scope="session")
def autoencoder() -> Experiment:
    """A tiny masked autoencoder; its batch is 16."""
    model = VitMae(
        patch_size=8,
        d_model=32,
        num_layers=2,
        num_heads=4,
        d_ff=64,
        decoder_d_model=16,
        decoder_num_layers=1,
        decoder_num_heads=2,
        dtype="float32",
        remat="none",
    )
    return resolve(Experiment(model, ImageData(source=Folder(), size=64), AdamW(), TRAIN))


@pytest.fixture(scope="session")
def chip() -> Chip:
    """A CPU of round numbers, so that nothing is measured."""
    return Chip(
        name="cpu",
        platform="cpu",
        device_kind="cpu",
        peak_bf16_flops=1e11,
        efficiency=Efficiency(products=0.9, attention=0.5),
        memory_bytes=2**30,
        usable=1.0,
        memory_bandwidth=1e10,
        link_bandwidth=1e9,
        network_bandwidth=1e8,
        devices_per_host=8,
        source="made up",
    )


@pytest.fixture(scope="session")
def one(chip: Chip) -> Machine:
    """One CPU device."""
    return Machine(parse_target("cpu:1"), jax.devices()[:1], chip, 1, compiles=True)


@pytest.fixture(scope="session")
def eight(chip: Chip) -> Machine:
    """All CPU devices of the tests."""
    return Machine(parse_target("cpu:8"), jax.devices(), chip, 1, compiles=True)


def changed(experiment: Experiment, **values: object) -> Experiment:
    """With fields set by their paths, `__` for dots."""
    pairs: Sequence[tuple[str, str]] = [
        (path.replace("__", "."), str(value)) for path, value in values.items()
    ]
    return apply_overrides(experiment, pairs)


class Remembering(InProcessCompiler):
    """Compiles each step once a session."""

    _compiled: ClassVar[dict[str, Compiled]] = {}

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine, lambda *_: None)

    def compile(self, experiments: Sequence[Experiment]) -> list[Compiled]:
        return [self._once(experiment) for experiment in experiments]

    def eval_bytes(self, experiment: Experiment) -> int:
        return 0

    def _once(self, experiment: Experiment) -> Compiled:
        key = f"{len(self._machine.devices)} {experiment!r}"
        if key not in self._compiled:
            self._compiled[key] = super().compile([experiment])[0]
        return self._compiled[key]


def total(experiment: Experiment, machine: Machine) -> int:
    return Remembering(machine).compile([experiment])[0].total


def plan(experiment: Experiment, machine: Machine, *, limit=None, searched=(MICROBATCH,)) -> Plan:
    return make_plan(
        experiment,
        machine,
        Remembering(machine),
        searched=searched,
        limit=limit,
        max_seconds=math.inf,
    )
