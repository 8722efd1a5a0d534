"""Compares planned with published throughputs, and fits the efficiencies of the time model.

python scripts/compare_throughput.py [--exposed=X] [--json]

Other models are written as decoders of the same sizes, and their activation checkpointing as the
remat policy that recomputes most nearly the same. Each source has the same weight in the fit. The
error that counts is that on a source that the fit did not see; where there is only one source, that
on a row that the fit did not see.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpretrain.config.command import Parser, run
from jaxpretrain.data.text.text import TextData
from jaxpretrain.devices.chips import CHIPS, Efficiency
from jaxpretrain.models.choices import RematPolicy
from jaxpretrain.models.layers import RMSNorm
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.olmo.variants import OLMO_SIZES
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.parallel.mesh import Mesh
from jaxpretrain.planning.estimates import StepTime, estimate_time
from jaxpretrain.planning.machines import placeholder_devices
from jaxpretrain.train.experiment import Experiment, Train, resolve
from jaxpretrain.train.program import Program, make_program


@dataclass(frozen=True)
class Row:
    """One published throughput and the settings that it was reached with."""

    source: str
    what: str
    model: Decoder
    chip: str
    num_devices: int
    seq_len: int
    microbatch: int
    published: float
    """Tokens/s per device."""
    remat: RematPolicy
    accumulation: int = 1
    tensor: int = 1
    fsdp: int = -1
    calibrates: bool = True
    """True where the fit uses the row; otherwise it is only compared."""

    def program(self) -> Program:
        """Returns the training step as a program of this package."""
        devices = placeholder_devices(CHIPS[self.chip], self.num_devices)
        num_data = self.num_devices // self.tensor
        experiment = Experiment(
            model=dataclasses.replace(self.model, remat=self.remat),
            data=TextData(seq_len=self.seq_len),
            optim=AdamW(),
            train=Train(
                duration="1000 steps",
                batch_size=num_data * self.microbatch * self.accumulation,
                microbatch_size=self.microbatch,
            ),
            mesh=Mesh(replica=-1 if self.fsdp > 0 else 1, fsdp=self.fsdp, tensor=self.tensor),
        )
        return make_program(resolve(experiment), devices)

    @property
    def group(self) -> str:
        """The rows with the same efficiency; Hopper's kernels of 2023 were slower."""
        if self.chip.startswith("tpu"):
            return "TPU"
        if self.chip.startswith("a100"):
            return "A100"
        return "Hopper, 2023" if self.source == "llm-foundry" else "Hopper"

    @property
    def num_hosts(self) -> int:
        """The number of hosts; a TPU slice counts as one, because all of its chips have links."""
        chip = CHIPS[self.chip]
        return 1 if chip.platform == "tpu" else max(1, self.num_devices // chip.devices_per_host)


def llama(vocab: int, d_model: int, layers: int, heads: int, kv_heads: int, d_ff: int) -> Decoder:
    """Returns a Llama of these sizes."""
    return Decoder(
        vocab_size=vocab,
        embedding_rows=vocab,
        d_model=d_model,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        d_ff=d_ff,
        norm=RMSNorm(),
    )


def mpt(d_model: int, layers: int, heads: int) -> Decoder:
    """Returns an MPT of these sizes.

    Its MLP has two matrices, four times as wide as the model; here it is a gated one with as many
    weights.
    """
    return Decoder(
        vocab_size=50368,
        embedding_rows=50368,
        d_model=d_model,
        num_layers=layers,
        num_heads=heads,
        d_ff=round(8 * d_model / 3),
        tied_head=True,
    )


LLAMA_2_7B = llama(32000, 4096, 32, 32, 32, 11008)
LLAMA_2_70B = llama(32000, 8192, 80, 64, 8, 28672)
LLAMA_3_8B = llama(128256, 4096, 32, 32, 8, 14336)
LLAMA_3_70B = llama(128256, 8192, 80, 64, 8, 28672)
MISTRAL_7B = llama(32000, 4096, 32, 32, 8, 14336)
MPT = {
    "760m": mpt(1536, 24, 12),
    "1b": mpt(2048, 24, 16),
    "3b": mpt(2560, 32, 20),
    "7b": mpt(4096, 32, 32),
    "13b": mpt(5120, 40, 40),
    "30b": mpt(7168, 48, 56),
}

# llm-foundry scripts/train/benchmarking/README.md: model, sequence, GPUs, microbatch, accumulation,
# tokens/s a GPU, whether activations are recomputed.
_FOUNDRY_H100 = (
    ("30b", 2048, 32, 14, 3, 2308, True),
    ("30b", 2048, 8, 3, 21, 2002, True),
    ("13b", 4096, 8, 10, 3, 4717, True),
    ("13b", 2048, 64, 2, 1, 4800, False),
    ("13b", 2048, 8, 2, 1, 4792, False),
    ("7b", 8192, 8, 8, 2, 6935, True),
    ("7b", 4096, 8, 16, 2, 8611, True),
    ("7b", 2048, 8, 6, 1, 10643, False),
    ("3b", 8192, 8, 3, 6, 16578, False),
    ("3b", 4096, 8, 5, 6, 20964, False),
    ("3b", 2048, 64, 6, 3, 22525, False),
    ("3b", 2048, 16, 10, 3, 24142, False),
    ("1b", 8192, 8, 3, 4, 29157, False),
    ("1b", 4096, 8, 7, 4, 38535, False),
    ("1b", 2048, 64, 20, 1, 44402, False),
    ("1b", 2048, 8, 14, 1, 45455, False),
    ("760m", 4096, 8, 12, 2, 55459, False),
    ("760m", 2048, 32, 24, 1, 67971, False),
    ("760m", 2048, 8, 24, 2, 63147, False),
)
_FOUNDRY_A100 = (
    ("30b", 2048, 8, 3, 21, 916, True),
    ("13b", 4096, 8, 10, 3, 2060, True),
    ("13b", 2048, 8, 2, 3, 2262, False),
    ("7b", 8192, 8, 8, 2, 3206, True),
    ("7b", 4096, 8, 16, 2, 3684, True),
    ("7b", 2048, 8, 6, 2, 4641, False),
    ("3b", 8192, 8, 3, 6, 7695, False),
    ("3b", 2048, 8, 10, 2, 10811, False),
    ("1b", 8192, 8, 3, 4, 13814, False),
    ("1b", 2048, 8, 14, 4, 20513, False),
    ("760m", 4096, 8, 12, 2, 27351, False),
    ("760m", 2048, 8, 24, 2, 32434, False),
)


def foundry(chip: str, rows: Iterable[tuple[str, int, int, int, int, float, bool]]) -> list[Row]:
    """Returns the rows of llm-foundry on one kind of GPU."""
    return [
        Row(
            "llm-foundry",
            f"MPT {name}{', recomputed' if recomputed else ''}",
            MPT[name],
            chip,
            gpus,
            seq_len,
            microbatch,
            published,
            "full" if recomputed else "dots",
            accumulation,
        )
        for name, seq_len, gpus, microbatch, accumulation, published, recomputed in rows
    ]


def kempner(gpus: int, published: float, *, tensor: int = 1) -> Row:
    """Returns a row of KempnerForge's benchmarks/mfu_scaling/mfu_scaling.md.

    Its state is bfloat16, and its tensor parallelism is eager PyTorch's; the time model knows
    neither.
    """
    return Row(
        source="KempnerForge",
        what=f"Llama-3 8B{f', tensor {tensor}' if tensor > 1 else ''}",
        model=LLAMA_3_8B,
        chip="h200",
        num_devices=gpus,
        seq_len=4096,
        microbatch=4,
        published=published / gpus,
        remat="full",
        accumulation=2,
        tensor=tensor,
        calibrates=tensor == 1,
    )


def olmo_core(name: str, microbatch: int, published: float, remat: RematPolicy) -> Row:
    """Returns a row of OLMo-core's README of March 2025.

    Checkpointing and the number of GPUs are assumed.
    """
    return Row(
        source="OLMo-core",
        what=name,
        model=OLMO_SIZES[name],
        chip="h100-80gb",
        num_devices=64,
        seq_len=4096,
        microbatch=microbatch,
        published=published,
        remat=remat,
        fsdp=8,
        calibrates=False,
    )


ROWS: tuple[Row, ...] = (
    *foundry("h100-80gb", _FOUNDRY_H100),
    kempner(1, 10_471),
    kempner(2, 18_728),
    kempner(4, 38_983),
    kempner(2, 13_163, tensor=2),
    kempner(4, 25_135, tensor=4),
    kempner(4, 25_980, tensor=2),
    # JAX-Toolbox, README of MaxText: minimal_flash keeps products and attention.
    Row("MaxText", "Llama-2 7B", LLAMA_2_7B, "h100-80gb", 8, 4096, 2, 11_362, "dots"),
    # MaxText gpu-recipes: products of attention are kept.
    Row("MaxText", "Llama-3.1 70B", LLAMA_3_70B, "h200", 256, 8192, 2, 1_056, "attention"),
    *foundry("a100-80gb", _FOUNDRY_A100),
    # AI-Hypercomputer tpu-recipes: inputs and products of attention lie in host memory.
    Row("MaxText", "Llama-3.1 8B", LLAMA_3_8B, "tpu-v6e", 8, 8192, 3, 7_139, "attention"),
    Row("MaxText", "Llama-3.1 8B", LLAMA_3_8B, "tpu-v6e", 256, 8192, 4, 7_207, "attention"),
    Row("MaxText", "Mistral 7B", MISTRAL_7B, "tpu-v6e", 8, 8192, 6, 7_777, "attention"),
    Row("MaxText", "Llama-2 70B", LLAMA_2_70B, "tpu-v6e", 256, 4096, 2, 905, "attention"),
    Row("MaxText", "Llama-3.1 70B", LLAMA_3_70B, "tpu-v6e", 256, 8192, 5, 960, "attention"),
    # MaxText README and configs/v5p/llama2_70b.sh.
    Row("MaxText", "Llama-2 70B", LLAMA_2_70B, "tpu-v5p", 64, 4096, 4, 692, "attention"),
    olmo_core("olmo2_1b", 8, 55_000, "dots"),
    olmo_core("olmo2_7b", 2, 10_000, "attention"),
    olmo_core("olmo2_13b", 1, 4_600, "attention"),
    # Cards limited to 500 W, with HBM2e.
    Row(
        "torchtitan",
        "Llama-3.1 8B",
        LLAMA_3_8B,
        "h100-80gb",
        8,
        8192,
        2,
        6_667,
        "dots",
        calibrates=False,
    ),
)


def predicted(row: Row, program: Program, efficiency: Efficiency | None = None) -> StepTime:
    """Returns the time model's estimate for a row."""
    chip = CHIPS[row.chip]
    chip = dataclasses.replace(chip, efficiency=efficiency or chip.efficiency)
    return estimate_time(program, chip, num_hosts=row.num_hosts)


def error(row: Row, step: StepTime) -> float:
    """Returns the relative error of the predicted throughput."""
    return step.units_per_second_per_device / row.published - 1


def fit(
    rows: Sequence[Row], programs: Sequence[Program], exposed: float | None = None
) -> Efficiency:
    """Fits the logarithm of the throughput by least squares, on a grid of efficiencies.

    The share of gathers and scatters that products do not hide is given or that of the chips, which
    compiled programs show.
    """
    counts = {row.source: sum(r.source == row.source for r in rows) for row in rows}
    # Seconds at the vendor's rates: those that an efficiency divides, and the others.
    terms = []
    if exposed is None:
        exposed = CHIPS[rows[0].chip].efficiency.exposed
    for row, program in zip(rows, programs, strict=True):
        step = predicted(row, program, Efficiency(1.0, 1.0, exposed))
        fixed = step.parts["memory"] + step.parts["network"]
        attention = step.parts["attention"]
        products = step.expected - attention - fixed
        terms.append((products, attention, fixed, step.units / step.num_devices))
    products, attention, fixed, units = np.array(terms).T
    weights = np.array([1 / counts[row.source] for row in rows])
    published = np.array([row.published for row in rows])

    def loss(efficiency: Efficiency) -> float:
        seconds = products / efficiency.products + attention / efficiency.attention + fixed
        return float(np.sum(weights * np.log(units / seconds / published) ** 2))

    shares = np.round(np.arange(0.1, 1.0, 0.01), 2).tolist()
    choices = itertools.product(shares, shares, [exposed])
    return min(itertools.starmap(Efficiency, choices), key=loss)


def main(argv: list[str]) -> None:
    """Prints a table, or one JSON document."""
    parser = Parser(prog="python scripts/compare_throughput.py", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument(
        "--exposed",
        type=float,
        help="share of gathers that fits take as waited for (default: known)",
    )
    flags = parser.parse_args(argv)
    programs = {row: row.program() for row in ROWS}
    table = [line(row, programs[row]) for row in ROWS]
    groups = dict.fromkeys(row.group for row in ROWS)
    fits = {group: summary(group, programs, flags.exposed) for group in groups}
    if flags.json:
        print(json.dumps({"fits": fits, "rows": table}))
        return
    print("| what | source | on | tokens | published | predicted | error | MFU | bound by |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for entry in table:
        print(
            f"| {entry['what']}{'' if entry['calibrates'] else ' *'} "
            f"| {entry['source']} | {entry['devices']} x {entry['chip']} "
            f"| {entry['microbatch']} x {entry['seq_len']:,} | {entry['published']:,.0f} "
            f"| {entry['predicted']:,.0f} | {entry['error']:+.0%} | {entry['mfu']:.0%} "
            f"| {entry['bound_by']} |"
        )
    for name, facts in fits.items():
        print(f"\n{name}: {json.dumps(facts)}")


def summary(
    group: str, programs: dict[Row, Program], exposed: float | None = None
) -> dict[str, Any]:
    """Returns the fit of a group, its errors, and the errors on rows that a fit did not see."""
    rows = [row for row in ROWS if row.group == group and row.calibrates]
    fitted = fit(rows, [programs[row] for row in rows], exposed)
    errors = [error(row, predicted(row, programs[row], fitted)) for row in rows]
    one_source = len({row.source for row in rows}) == 1
    unseen = []
    for row in rows:
        others = [r for r in rows if (r is not row if one_source else r.source != row.source)]
        efficiency = fit(others, [programs[other] for other in others], exposed)
        unseen.append(error(row, predicted(row, programs[row], efficiency)))
    return {
        "rows": len(rows),
        "sources": len({row.source for row in rows}),
        "fitted": dataclasses.asdict(fitted),
        "used": dataclasses.asdict(CHIPS[rows[0].chip].efficiency),
        "mean_error": mean_size(errors),
        "largest_error": max(errors, key=abs),
        "unseen_mean_error": mean_size(unseen),
        "unseen_largest_error": max(unseen, key=abs),
    }


def mean_size(errors: Sequence[float]) -> float:
    """Returns the mean of the absolute errors."""
    return math.fsum(map(abs, errors)) / len(errors)


def line(row: Row, program: Program) -> dict[str, float | str | bool]:
    """Returns a row with the prediction by the efficiency in use."""
    step = predicted(row, program)
    return {
        "what": row.what,
        "source": row.source,
        "chip": row.chip,
        "devices": row.num_devices,
        "seq_len": row.seq_len,
        "microbatch": row.microbatch,
        "remat": row.remat,
        "calibrates": row.calibrates,
        "published": row.published,
        "predicted": step.units_per_second_per_device,
        "optimistic": step.units / step.optimistic / step.num_devices,
        "error": error(row, step),
        "mfu": step.mfu,
        "bound_by": step.bound_by,
    }


if __name__ == "__main__":
    run(main)
