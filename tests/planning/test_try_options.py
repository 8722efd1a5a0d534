"""scripts/try_options.py: options of XLA tried on a tiny step of this machine."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.planning.audit import Audit, Collective
from scripts import try_options
from scripts.try_options import Variant, changes, combinations, make_document, make_table
from tests.planning.conftest import TINY


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(TINY.format(hardware="cpu:1", d_ff=64))
    return path


def test_options_are_tried_and_unknown_ones_are_told(
    config: Path, capsys: pytest.CaptureFixture[str]
):
    given = ["--config.model.remat=full", "--config.model.dtype=float32", "--rounds=2", "--steps=1"]
    tried = ["xla_cpu_enable_fastmath=true", "xla_backend_optimization_level=high,0"]
    try_options.main([f"--config={config}", *given, *(f"--try={text}" for text in tried), "--json"])
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    (entry,) = document["tried"]
    flag = "--config.train.compiler_options.xla_backend_optimization_level=0"
    assert entry["overrides"] == [flag] and document["default"]["overrides"] == []
    assert entry["step_seconds"] > 0 and entry["memory_bytes"] > 0
    assert entry["ratio_low"] <= entry["ratio"] <= entry["ratio_high"]
    # Rounding aside, it is the same step.
    assert entry["loss"] == pytest.approx(document["default"]["loss"], rel=1e-5)
    assert entry["results_differ_by"] < 1e-4
    assert list(document["refused"]) == [tried[0], "xla_backend_optimization_level=high"]
    assert "Did you mean 'xla_cpu_enable_fast_math'?" in document["refused"][tried[0]]
    assert f"{tried[0]} is left out: " in printed.err
    assert "rounds of 1 step" in printed.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--try=xla_a"], "--try=xla_a: write NAME=VALUE"),
        (["--try=xla_a=1,"], "write NAME=VALUE"),
        (["--try=xla_a=1+=2"], "write NAME=VALUE"),
        (["--try=xla_a=1", "--rounds=1"], "--rounds=1: must be 2 or more"),
        ([], "--try"),
    ],
)
def test_bad_flags_are_one_line(config: Path, flags: list[str], message: str):
    with pytest.raises(InputError, match=message):
        try_options.main([f"--config={config}", *flags])


def test_values_are_combined_and_those_of_one_try_are_set_together():
    assert list(combinations("a=1,2+b=x+c=3,4")) == [
        "a=1+b=x+c=3",
        "a=1+b=x+c=4",
        "a=2+b=x+c=3",
        "a=2+b=x+c=4",
    ]


def variant(name: str, seconds: Any, loss: float = 2.0) -> Variant:
    """A variant that has had its turns; its step is that of the number one."""
    step = jax.jit(lambda x: x).lower(1.0).compile()
    found = Audit(1.0, 0.0, 0, 9, 0, 100, (), (), 0, 0)
    made: Any = Variant(name, None, step, found, 1.0)  # pyright: ignore[reportArgumentType]
    return replace(made, results=np.array([loss, 1.0]), seconds=list(seconds))


def test_a_ratio_is_that_of_turns_in_the_same_round(monkeypatch: pytest.MonkeyPatch):
    """The machine gets three times slower; what is a tenth faster in each round shows it."""
    monkeypatch.setattr(try_options, "measured", lambda *_: Namespace(total=2**30))
    pace = np.linspace(1.0, 3.0, 12)
    noise = 1 + 0.01 * np.random.default_rng(0).standard_normal((3, 12))
    variants = [
        variant("default", pace * noise[0]),
        variant("xla_a=1", 0.9 * pace * noise[1], loss=2.002),
        variant("xla_b=1", pace * noise[2]),
    ]
    flags = Namespace(config="tiny", rounds=12, steps=1)
    document = make_document(flags, variants, {"xla_c=1": "no such option"})
    faster, same = document["tried"]
    assert faster["verdict"] == "faster" and same["verdict"] == "not seen"
    assert faster["ratio_low"] < 0.9 < faster["ratio_high"] < 0.92
    assert same["ratio_low"] < 1.0 < same["ratio_high"]
    assert faster["results_differ_by"] == pytest.approx(1e-3)
    assert 0.005 < same["smallest_seen"] < 0.02
    lines = list(make_table(document))
    assert "faster: --config.train.compiler_options.xla_a=1" in lines
    assert lines[-1] == "left out: xla_c=1: no such option"


def test_what_differs_in_an_audit_is_listed_by_name():
    before = Audit(
        1.0, 0.0, 0, 9, 0, 100, (), (Collective("all-gather", "bf16", False, False, 7),), 7, 0
    )
    after = replace(
        before, traffic_bytes=80, collectives=(Collective("all-gather", "bf16", False, True, 7),)
    )
    assert changes(before, before) == {}
    assert changes(before, after) == {
        "traffic_bytes": (100, 80),
        "bytes of all-gather bf16, waited for": (7, 0),
        "bytes of all-gather bf16, behind products": (0, 7),
    }
