"""Histories to judge: recorded ones, from tests/golden/histories, and made-up ones."""

import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpretrain.config.renames import upgraded
from jaxpretrain.config.serialize import from_dict
from jaxpretrain.diagnosis.history import History, Series
from jaxpretrain.diagnosis.intent import TrainingPlan, plan_of
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.optim.schedules import Triangular

HISTORIES = Path(__file__).parent.parent / "golden" / "histories"


@pytest.fixture
def recorded() -> Callable[[str], tuple[History, TrainingPlan]]:
    """Scenario of scripts/make_histories.py -> its history and plan."""

    def load(name: str) -> tuple[History, TrainingPlan]:
        document = json.loads(gzip.decompress((HISTORIES / f"{name}.json.gz").read_bytes()))
        config = upgraded(document["config"])
        optim = {key: value for key, value in config["optim"].items() if key != "class"}
        train = config["train"]
        plan = plan_of(from_dict(AdamW, optim), train["duration"], train["batch_size"])
        return History({n: _series(*columns) for n, columns in document["series"].items()}), plan

    return load


@pytest.fixture
def history() -> Callable[..., History]:
    """(steps, values by name) -> a history with one line a step, a second apart."""

    def make(steps: Any, values: Mapping[str, Any], **others: Any) -> History:
        series = {name: _series(steps, steps, v) for name, v in values.items()}
        return History(series | others)

    return make


@pytest.fixture
def olmo_7b() -> tuple[History, TrainingPlan]:
    """OLMo-7B's published schedule, and a loss of that shape: 3.0 when the warm-up ends.

    A step of 4M tokens takes 5 s; evaluations and saves every 1,000 steps take 100 s and 20 s.
    """
    optim = AdamW(schedule=Triangular(start=3e-5, peak=3e-4, end=3e-5, warmup=5000))
    plan = plan_of(optim, 476_838, 2048)
    steps = np.arange(10, 40_001, 10)
    rng = np.random.default_rng(0)
    # A power law in steps, through 11 at the start and 3.0 at 5,000, as users see it.
    loss = 2.2 + 8.8 * (1 + steps / 100) ** -0.62 + 0.02 * rng.normal(size=len(steps))
    tokens = 2048 * 2048
    pauses = steps // 1000
    values = {
        "train/loss": loss,
        "train/learning_rate": plan.learning_rate(steps),
        "train/grad_norm": 0.4 + 0.05 * rng.random(len(steps)),
        "train/tokens": steps * tokens,
        "time/train_seconds": steps * 5.0,
        "time/eval_seconds": 100.0 * pauses,
        "time/save_seconds": 20.0 * pauses,
    }
    return History({n: _series(steps, steps * 5.0, v) for n, v in values.items()}), plan


def _series(steps: Any, times: Any, values: Any) -> Series:
    return Series(np.array(steps, np.int64), np.array(times, float), np.array(values, float))
