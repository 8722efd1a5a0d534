"""Compiling in processes of its own, once."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import jax
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.planning import compilers
from jaxpretrain.planning.compiled import Buffer, compile_step
from jaxpretrain.planning.compilers import ProcessPoolCompiler
from jaxpretrain.planning.machines import Machine
from jaxpretrain.planning.targets import parse_target
from tests.planning.conftest import changed


@pytest.fixture
def cached(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXPRETRAIN_CACHE", str(tmp_path))


def test_other_processes_compile_the_same_and_only_once(decoder, eight: Machine, cached):
    experiments = [changed(decoder, train__microbatch_size=size) for size in (1, 2)]
    told = []
    # The processes inherit the eight virtual devices of the tests.
    target = parse_target(f"cpu:{jax.device_count()}")
    setup = target, "float32", 1, lambda experiment, result: told.append((experiment, result))
    with ProcessPoolCompiler(*setup) as workers:
        first = workers.compile(experiments)
        with pytest.raises(InputError, match="microbatch_size=3 does not divide"):
            workers.compile([changed(decoder, train__microbatch_size=3)])
    assert told == list(zip(experiments, first, strict=True))
    assert [c.memory for c in first] == [compile_step(e, eight).memory for e in experiments]
    with ProcessPoolCompiler(*setup) as none_started:
        assert none_started.compile(experiments) == first
        assert not none_started._executor._processes


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"total": "1"}'])
def test_a_damaged_result_counts_as_none(decoder, one: Machine, tmp_path: Path, content: str):
    # A program that comes out of the compilation cache tells no buffers.
    compiled = replace(compile_step(decoder, one), buffers=(Buffer(2**20, "parameter 0"),))
    (tmp_path / "whole.json").write_text(json.dumps(asdict(compiled)))
    assert compilers._kept(tmp_path / "whole.json") == compiled
    (tmp_path / "damaged.json").write_text(content)
    assert compilers._kept(tmp_path / "damaged.json") is None


def test_results_belong_to_what_they_depend_on(decoder, cached, monkeypatch: pytest.MonkeyPatch):
    eight, four = parse_target("cpu:8"), parse_target("cpu:4")
    paths = {
        compilers._path(decoder, eight),
        compilers._path(decoder, four),
        compilers._path(changed(decoder, model__remat="dots"), eight),
    }
    monkeypatch.setattr(compilers, "_code", lambda: "changed")
    assert len(paths | {compilers._path(decoder, eight)}) == 4
