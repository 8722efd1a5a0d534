"""The audit of compiled steps: texts of steps for absent GPUs, and a step of this machine."""

import json
import lzma
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxpretrain.config.serialize import to_dict
from jaxpretrain.planning.audit import Audit, Collective, _warnings, audit, count
from jaxpretrain.planning.compiled import compile_step
from jaxpretrain.planning.machines import Machine
from jaxpretrain.train.program import make_program
from tests.planning.conftest import changed

GOLDEN = Path(__file__).parents[1] / "golden" / "hlo"


def kept(name: str, num_devices: int, num_hosts: int) -> Audit:
    """The audit of a kept text, without metadata of a step of jax 0.10.2."""
    text = lzma.decompress((GOLDEN / f"{name}.txt.xz").read_bytes()).decode()
    return count(text, np.arange(num_devices) * num_hosts // num_devices)


def sums(found: Audit, *names: str) -> dict[tuple, float]:
    """GB of communication by these fields."""
    total: dict[tuple, float] = {}
    for c in found.collectives:
        key = tuple(getattr(c, name) for name in names)
        total[key] = total.get(key, 0.0) + c.bytes / 1e9
    return {key: round(gigabytes, 1) for key, gigabytes in total.items()}


def test_a_step_that_was_compiled_for_too_little_memory_shows_it() -> None:
    """OLMo-7B on eight H100s, microbatch 8, dots, with XLA's own limit: 80 % of the card."""
    found = kept("olmo_7b_h100_8", 8, 1)
    assert found.product_flops == pytest.approx(2.395e16, rel=1e-3)
    assert found.remat_instructions == 85
    assert found.float32_product_flops == found.cross_host_bytes == found.opaque_kernels == 0
    assert found.traffic_bytes == pytest.approx(20.74e12, rel=1e-3)
    assert sums(found, "kind", "dtype", "overlapped") == {
        ("all-gather", "bf16", False): 736.9,
        ("reduce-scatter", "bf16", False): 374.2,
        ("all-reduce", "f32", False): 46.2,
        ("all-gather", "f32", False): 23.1,
    }
    expected = replace(found, expected_flops=2.2006e16, expected_traffic_bytes=int(15.2e12))
    expected = replace(expected, sent_minimum=int(1134.1e9))
    products, traffic, hidden = _warnings(expected, is_narrow=True)
    assert products.startswith("products take 1.09 times those of the model; XLA recomputes 85 ")
    assert "bf16[32,16384,11008]" in traffic
    assert "most of it is waited for" in hidden


def test_sums_over_copies_cross_hosts() -> None:
    """OLMo-7B on two hosts of eight H100s, a copy on each, 32 microbatches, as of jax 0.10.2."""
    found = kept("olmo_7b_h100_2x8", 16, 2)
    assert sums(found, "crosses_hosts") == {(False,): 1122.6, (True,): 126.0}
    assert sums(found, "overlapped")[(True,)] == 787.1
    assert found.cross_host_bytes / 1e9 == pytest.approx(126.0, abs=0.05)
    assert found.sent_bytes / 1e9 == pytest.approx(1248.6, abs=0.05)
    least = replace(found, cross_host_minimum=int(3.4e9), sent_minimum=int(1200e9))
    least = replace(least, expected_flops=2e16, expected_traffic_bytes=int(1e13))
    assert _warnings(least, is_narrow=True) == ["125.98 GB cross hosts; 3.40 GB would do"]
    # The same devices in one host: nothing crosses.
    assert kept("olmo_7b_h100_2x8", 16, 1).cross_host_bytes == 0


LOOP = """
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %start = f32[8]{0} all-reduce-start(%x), replica_groups={{0,1},{2,3}}, to_apply=%add, SYNC
  BETWEEN
  %done = f32[8]{0} all-reduce-done(%start)
  ROOT %out = (s32[], f32[8]{0}) tuple(%i, %done)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %zero = s32[] constant(0)
  %t = (s32[], f32[8]{0}) tuple(%zero, %a)
  %w = (s32[], f32[8]{0}) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %r = f32[8]{0} get-tuple-element(%w), index=1
  %all = f32[32]{0} all-gather(%r), replica_groups=[1,4]<=[4], dimensions={0}
  %pass = f32[8]{0} collective-permute(%r), source_target_pairs={{0,1},{1,2}}
  %again.remat = f32[8]{0} negate(%r)
  %async = ((f32[8]{0}), f32[4]{0}) async-start(%r), calls=%wrapped
  ROOT %end = f32[4]{0} async-done(%async)
}

%n () -> () {
  ROOT %none = () tuple()
}

%product () -> () {
  %y = f32[8]{0} constant(0)
  %e = f32[8,8]{1,0} dot(%y, %y), lhs_contracting_dims={}
  ROOT %nothing = () tuple()
}

%wrapped (q: f32[8]) -> f32[4] {
  %q = f32[8]{0} parameter(0)
  ROOT %s = f32[4]{0} reduce-scatter(%q), replica_groups={{0,1},{2,3}}, dimensions={0}
}
"""  # noqa: E501
PRODUCT = "%d = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={}"


@pytest.mark.parametrize(
    ("between", "sync", "hidden"),
    [
        (PRODUCT, '"is_sync":false', True),
        (PRODUCT, '"is_sync":true', False),
        ("%n = f32[8]{0} negate(%x)", "", False),
        ("%c = () call(), to_apply=%product", "", True),
        ("%c = () conditional(%i), true_computation=%n, false_computation=%product", "", True),
    ],
)
def test_loops_count_as_often_as_they_run(between: str, sync: str, hidden: bool) -> None:
    found = count(LOOP.replace("BETWEEN", between).replace("SYNC", sync), [0, 0, 1, 1])
    assert found.product_flops == found.float32_product_flops == 640 * ("%n =" not in between)
    assert set(found.collectives) == {
        Collective("all-reduce", "f32", False, hidden, 5 * 32),
        Collective("all-gather", "f32", True, False, 3 * 32),
        Collective("collective-permute", "f32", True, False, 32),
        Collective("reduce-scatter", "f32", False, False, 16),
    }
    assert found.cross_host_bytes == 128
    assert found.remat_instructions == 1
    assert found.traffic_bytes == 64 + 5 * 64 * ("%n =" in between)


def test_a_step_is_audited_beside_its_least(decoder, eight: Machine) -> None:
    """Both sides count the same products; a CPU is told nothing of slow ones."""
    program = make_program(
        changed(decoder, model__remat="dots", model__attention="xla"), eight.devices
    )
    found = audit(program, program.compile(), num_hosts=1)
    assert found.product_flops == pytest.approx(found.expected_flops, rel=0.01)
    assert found.sent_bytes > 0.8 * found.sent_minimum > 0
    assert found.cross_host_bytes == found.cross_host_minimum == 0
    assert found.warnings == ()
    (line,) = found.describe()
    assert line.startswith("products 1 times those of the model, ")
    assert any(text.startswith("FLOPs in products") for text in found.listed())
    assert len(jax.tree.leaves(asdict(found))) > 10


def test_what_crosses_hosts_is_what_the_mesh_says(decoder, eight: Machine) -> None:
    least = {
        name: audit(make_program(changed(decoder, mesh__replica=copies), eight.devices), Text(), 2)
        for name, copies in {"shared": 1, "copied": 2}.items()
    }
    program = make_program(changed(decoder, mesh__replica=2), eight.devices)
    num_params = sum(x.size for x in jax.tree.leaves(program.state.params))
    # Each of two copies sends half of its devices' sums and half of the results, in float32.
    assert least["copied"].cross_host_minimum == 4 * num_params / 4
    assert least["shared"].cross_host_minimum == least["shared"].sent_minimum


class Text:
    """A compiled step without an instruction."""

    def as_text(self) -> str:
        return "ENTRY %main () -> f32[] {\n}"


def planned(*flags: str) -> dict[str, Any]:
    """The document of a plan of OLMo-7B for H100s that are not there."""
    if find_spec("jax_cuda13_plugin") is None:
        pytest.skip("needs jaxpretrain[plan-gpu]")
    command = [sys.executable, "-m", "jaxpretrain.plan", "--config=olmo7b", "--search=none"]
    command += ["--config.model.remat=dots", "--json", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def require_as_large(sizes: Iterable[tuple[int, int]]) -> None:
    """Fails where memory or program, in bytes and instructions, differ by more than 3 %."""
    for numbers in zip(*sizes, strict=True):
        assert max(numbers) <= 1.03 * min(numbers), numbers


def test_neither_memory_nor_program_grows_with_the_number_of_devices(decoder, eight: Machine):
    small = changed(decoder, train__microbatch_size=1)
    compiled = compile_step(small, eight)
    assert compiled.audit is not None
    # As many examples for each device, in copies of the model on eight devices.
    values = {"batch_size": 256, "microbatch_size": 1}
    large = changed(decoder, mesh__replica=16, **{f"train__{k}": v for k, v in values.items()})
    code = """
import json, sys
import jax
from jaxpretrain.config.serialize import from_dict
from jaxpretrain.config.serialize import to_dict
from jaxpretrain.planning.audit import audit
from jaxpretrain.train.experiment import Resolved
from jaxpretrain.train.program import make_program, measured
program = make_program(from_dict(Resolved, json.load(sys.stdin)), jax.devices())
step = program.compile()
print(json.dumps([measured(program, step).total, audit(program, step, 1).num_instructions]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(to_dict(large)),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "128"},
    )
    assert done.returncode == 0, done.stderr
    require_as_large([(compiled.total, compiled.audit.num_instructions), json.loads(done.stdout)])


@pytest.mark.slow
def test_the_documented_plan_is_what_trains() -> None:
    plan = planned("--target=h100-80gb:8", "--config.train.microbatch_size=8")
    found = plan["audit"]
    assert plan["fits"] and found["remat_instructions"] == 0
    assert found["product_flops"] == pytest.approx(found["expected_flops"], rel=0.01)
    assert found["float32_product_flops"] == found["cross_host_bytes"] == 0


@pytest.mark.slow
def test_copies_of_the_model_cost_as_little_on_many_hosts_as_on_few() -> None:
    """Sums over copies leave a host once a step; memory, program and compilation do not grow."""
    plans = {
        hosts: planned(
            f"--target=h100-80gb:{hosts}x8",
            f"--config.mesh.replica={hosts}",
            "--config.train.microbatch_size=2",
        )
        for hosts in (1, 2, 8, 16)
    }
    for hosts, plan in plans.items():
        found = plan["audit"]
        assert found["cross_host_bytes"] <= 1.1 * found["cross_host_minimum"]
        assert (found["cross_host_minimum"] > 0) == (hosts > 1)
        assert found["product_flops"] == pytest.approx(found["expected_flops"], rel=0.01)
    require_as_large(
        (plan["memory_bytes_per_device"], plan["audit"]["num_instructions"])
        for plan in plans.values()
    )
    seconds = [plan["plan_seconds"] for plan in plans.values()]
    assert max(seconds) <= 3 * min(seconds)
