"""Audits the compiled steps of published models on machines that need not be there.

python scripts/audit_steps.py [--only=h100] [--json]

Compiles ten steps, each in half a minute to some minutes, and prints the table of
docs/benchmarks.md. It needs the compilers of the targets (jaxpretrain[plan-gpu], and
jaxpretrain[plan-tpu] in another environment); cases without theirs are left out.
"""

import json
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

from jaxpretrain.config.command import Parser, run, split_overrides
from jaxpretrain.config.errors import InputError
from jaxpretrain.planning.machines import parse_target

# Name, config, target, fields.
CASES: tuple[tuple[str, str, str, dict[str, object]], ...] = (
    ("7B, 8 H100", "olmo7b", "h100-80gb:8", {"size": 8}),
    ("7B, 2 x 8 H100, 2 copies", "olmo7b", "h100-80gb:2x8", {"size": 4, "replica": 2}),
    ("7B, 2 x 8 H100, one copy", "olmo7b", "h100-80gb:2x8", {"size": 8}),
    ("7B, 16 x 8 H100, 16 copies", "olmo7b", "h100-80gb:16x8", {"size": 8, "replica": 16}),
    ("OLMo 2 1B, 1 H200", "olmo2_1b", "h200:1", {"size": 16}),
    ("32B, 16 x 8 H100", "olmo2_32b", "h100-80gb:16x8", {"size": 1, "remat": "full"}),
    ("32B, the same, attention", "olmo2_32b", "h100-80gb:16x8", {"size": 8, "remat": "attention"}),
    ("Sapiens 1B, 8 A100", "sapiens_1b", "a100-80gb:8", {"size": 32}),
    ("7B, TPU v5p 4x4x4, one copy", "olmo7b", "tpu-v5p:4x4x4", {"size": 8}),
    ("7B, TPU v5p 4x4x4, 4 copies", "olmo7b", "tpu-v5p:4x4x4", {"size": 8, "replica": 4}),
)
HEAD = ("step", "FLOPs, of the model's", "GB sent", "least", "GB across hosts", "least", "hidden")
HEAD += ("TB of traffic", "estimate", "GiB", "s predicted", "s measured")


def main(argv: list[str]) -> None:
    """Prints a table, or one JSON document."""
    parser = Parser(prog="python scripts/audit_steps.py", description=__doc__)
    parser.add_argument("--only", default="", help="part of the names of targets")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    rest, overrides = split_overrides(argv)
    flags = parser.parse_args(rest)
    fields = [f"--config.{path}={value}" for path, value in overrides]
    cases = [case for case in CASES if flags.only in case[2]]
    if not cases:
        targets = ", ".join(dict.fromkeys(case[2] for case in CASES))
        raise InputError(f"--only={flags.only}: part of no target; they are {targets}")
    cases = [case for case in cases if find_spec(_compiler(case[2])) is not None]
    if not cases:
        raise InputError("no compiler for these targets: pip install -e '.[plan-gpu]', or plan-tpu")
    if not flags.json:
        print(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}", flush=True)
    plans = {}
    for case in cases:
        plans[case[0]] = plan = planned(case, fields)
        if not flags.json:
            print(f"| {' | '.join([case[0], *row(plan)])} |", flush=True)
    if flags.json:
        print(json.dumps(plans))


def _compiler(target: str) -> str:
    return "libtpu" if parse_target(target).platform == "tpu" else "jax_cuda13_plugin"


def planned(case: tuple[str, str, str, dict[str, object]], fields: list[str]) -> dict[str, Any]:
    """Returns the document of the plan of a case, with further fields of its config."""
    _, config, target, changed = case
    paths = {"size": "train.microbatch_size", "replica": "mesh.replica", "remat": "model.remat"}
    command = [sys.executable, "-m", "jaxpretrain.plan", f"--config={config}", "--json"]
    command += [f"--target={target}", "--search=none"]
    values = {"remat": "dots"} | changed
    command += [f"--config.{paths[name]}={value}" for name, value in values.items()]
    done = subprocess.run([*command, *fields], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == 2:  # its line is printed
        raise InputError(f"{case[0]}: the plan refuses this")
    done.check_returncode()
    return json.loads(done.stdout)


def row(plan: dict[str, Any]) -> list[str]:
    """Returns the cells of a plan; what a card would have to measure stays empty."""
    found = plan["audit"]
    hidden = sum(c["bytes"] for c in found["collectives"] if c["overlapped"])
    return [
        f"{found['product_flops'] / found['expected_flops']:.3f}",
        f"{found['sent_bytes'] / 1e9:,.1f}",
        f"{found['sent_minimum'] / 1e9:,.1f}",
        f"{found['cross_host_bytes'] / 1e9:,.2f}",
        f"{found['cross_host_minimum'] / 1e9:,.2f}",
        f"{hidden / found['sent_bytes']:.0%}" if found["sent_bytes"] else "-",
        f"{found['traffic_bytes'] / 1e12:.1f}",
        f"{found['expected_traffic_bytes'] / 1e12:.1f}",
        f"{plan['memory_bytes_per_device'] / 2**30:.2f}",
        f"{plan['step_seconds']:.3g}",
        "",
    ]


if __name__ == "__main__":
    run(main)
