"""The audit of a compiled step: what XLA made of it, beside what there has to be.

All numbers are those of one device and one step. They are read from the optimized and scheduled
HLO, in which loops count as often as they run. A kernel whose operations XLA does not know, as
splash attention, is taken to do what `models.costs` says.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from jaxpretrain.planning.estimates import memory_bytes, messages
from jaxpretrain.planning.hlo import Computation, Instruction, Module, parse_groups
from jaxpretrain.train.program import Program

_KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id"}
_FREE |= {"after-all", "optimization-barrier", "copy-done", "custom-call"}
_CALLED = "to_apply|branch_computations|true_computation|false_computation"
_NUM_COPIES = 3

_MAX_FLOPS_RATIO = 1.01
"""Largest ratio of executed to modelled FLOPs of products without a warning."""
_MAX_SENT_RATIO = 1.1
"""Largest ratio of bytes that are sent to the least without a warning."""
_MAX_TRAFFIC_RATIO = 1.25
"""Largest ratio of memory traffic to the estimate without a warning."""
_MIN_HIDDEN_SHARE = 0.5
"""Smallest share of the bytes of communication behind products without a warning."""


@dataclass(frozen=True)
class Collective:
    """The communication of one kind."""

    kind: str
    """Kind as XLA names it: all-gather, reduce-scatter, all-reduce, ..."""
    dtype: str
    """Type of the numbers as XLA names it: bf16, f32, ..."""
    crosses_hosts: bool
    """True where a group of devices that communicate spans several hosts."""
    overlapped: bool
    """True where a product runs between its start and its end."""
    bytes: int = 0
    """Bytes that a device sends where each group is a ring."""


@dataclass(frozen=True)
class Copies:
    """The traffic of kernels of one kind that copy, fill or convert."""

    bytes: int
    kernels: str
    """Name of the kernels, and the shape that they write."""


@dataclass(frozen=True)
class Audit:
    """The measured work of a device in a step, beside the least that it must do."""

    product_flops: float
    float32_product_flops: float
    """FLOPs of products whose operands both are float32."""
    opaque_kernels: int
    """Kernels whose operations XLA does not know."""
    num_instructions: int
    """Instructions of the program: its size, which does not grow with the number of devices."""
    remat_instructions: int
    """Instructions that XLA computes a second time to save memory."""
    traffic_bytes: int
    """Bytes that kernels without products read and write."""
    largest_copies: tuple[Copies, ...]
    collectives: tuple[Collective, ...]
    """Communication by kind, the largest first."""
    sent_bytes: int
    """Bytes that a device sends."""
    cross_host_bytes: int
    """Bytes of these in groups that span several hosts."""
    expected_flops: float = 0.0
    """FLOPs that the model asks for, with those of its remat policy and kernels."""
    expected_traffic_bytes: int = 0
    """Bytes of `traffic_bytes` as the planner estimates them."""
    sent_minimum: int = 0
    cross_host_minimum: int = 0
    warnings: tuple[str, ...] = ()
    """A line about each number that is over its least; none on CPUs."""

    def describe(self) -> list[str]:
        """Returns a line for start-up, and a line for each warning."""
        parts = [
            f"products {_times(self.product_flops, self.expected_flops)} those of the model",
            f"memory traffic outside them {_times(self.traffic_bytes, self.expected_traffic_bytes)}"
            " the estimate",
        ]
        if self.sent_bytes:
            sent = _times(self.sent_bytes, self.sent_minimum)
            parts.append(f"communication {sent} the least, {self._hidden:.0%} behind products")
        return [", ".join(parts), *(f"warning: {warning}" for warning in self.warnings)]

    def listed(self) -> list[str]:
        """Returns lines with all numbers, and a line for each warning."""
        lines = [
            _line("FLOPs in products", self.product_flops, f"model {self.expected_flops:,.5g}"),
            _line("FLOPs of these in float32", self.float32_product_flops),
            _line("instructions recomputed", self.remat_instructions),
        ]
        for name, number, what, beside in (
            (
                "GB moved outside products",
                self.traffic_bytes,
                "estimate",
                self.expected_traffic_bytes,
            ),
            ("GB sent", self.sent_bytes, "least", self.sent_minimum),
            ("GB sent across hosts", self.cross_host_bytes, "least", self.cross_host_minimum),
        ):
            lines.append(_line(name, number / 1e9, f"{what} {beside / 1e9:,.5g}"))
        for c in self.collectives:
            across = ", across hosts" if c.crosses_hosts else ""
            waits = "behind products" if c.overlapped else "waited for"
            lines.append(_line(f"GB by {c.kind} {c.dtype}", c.bytes / 1e9, waits + across))
        for c in self.largest_copies:
            lines.append(_line("GB of most copies", c.bytes / 1e9, c.kernels))
        return [*lines, *(f"warning: {warning}" for warning in self.warnings)]

    @property
    def _hidden(self) -> float:
        """Share of the communication that products hide; 1 where there is none."""
        hidden = sum(c.bytes for c in self.collectives if c.overlapped)
        return hidden / self.sent_bytes if self.sent_bytes else 1.0


def audit(program: Program, compiled: jax.stages.Compiled, num_hosts: int) -> Audit:
    """Audits the compiled step of a program.

    `num_hosts` is the number of groups of devices with fast links inside: hosts of GPUs, or slices
    of TPUs; neighbours on the mesh share one.
    """
    mesh = program.layout.mesh
    hosts = np.arange(mesh.size) * num_hosts // mesh.size
    found = count(compiled.as_text() or "", hosts)
    share = program.experiment.train.batch_size / mesh.size
    flops = {part: share * n for part, n in program.model.costs().executed_flops().items()}
    places = hosts.reshape(mesh.devices.shape)
    crossing = [axis for i, axis in enumerate(mesh.axis_names) if np.ptp(places, axis=i).any()]
    sent = {message.axis: round(message.sent) for message in messages(program)}
    found = replace(
        found,
        product_flops=found.product_flops + (flops["attention"] if found.opaque_kernels else 0.0),
        expected_flops=sum(flops.values()),
        expected_traffic_bytes=round(memory_bytes(program)),
        sent_minimum=sum(sent.values()),
        cross_host_minimum=sum(n for axis, n in sent.items() if axis in crossing),
    )
    if mesh.devices.flat[0].platform == "cpu":
        return found
    is_narrow = program.experiment.model.dtype != "float32"
    return replace(found, warnings=tuple(_warnings(found, is_narrow)))


def _warnings(found: Audit, is_narrow: bool) -> list[str]:
    lines = []
    if found.product_flops > _MAX_FLOPS_RATIO * found.expected_flops:
        lines.append(
            f"products take {_times(found.product_flops, found.expected_flops)} those of the "
            f"model; XLA recomputes {found.remat_instructions} instructions to save memory "
            "(a smaller train.microbatch_size needs less)"
        )
    if is_narrow and found.float32_product_flops:
        share = found.float32_product_flops / found.product_flops
        lines.append(f"{share:.1%} of the products have float32 operands, which are slower")
    for name, bytes_, least in (
        ("are sent", found.sent_bytes, found.sent_minimum),
        ("cross hosts", found.cross_host_bytes, found.cross_host_minimum),
    ):
        if bytes_ > _MAX_SENT_RATIO * least:
            lines.append(f"{bytes_ / 1e9:,.2f} GB {name}; {least / 1e9:,.2f} GB would do")
    if found.traffic_bytes > _MAX_TRAFFIC_RATIO * found.expected_traffic_bytes:
        copies = ", ".join(f"{c.bytes / 1e9:,.1f} GB {c.kernels}" for c in found.largest_copies)
        lines.append(f"kernels outside products move more than estimated; most copies: {copies}")
    if found._hidden < _MIN_HIDDEN_SHARE:
        lines.append("products hide little of the communication: most of it is waited for")
    return lines


def _line(name: str, number: float, beside: str = "") -> str:
    return f"{name:<30}{number:>11,.5g}  {beside}".rstrip()


def _times(number: float, least: float) -> str:
    return f"{number / least if least else np.inf:.3g} times"


def count(text: str, hosts: Sequence[int] | np.ndarray) -> Audit:
    """Counts what a device does; `hosts` holds the host of each device, in the mesh's order."""
    return _Counter(text, np.asarray(hosts)).counts()


class _Counter:
    """Adds up what a program does, from its entry on."""

    def __init__(self, text: str, hosts: np.ndarray) -> None:
        self._module, self._hosts = Module(text), hosts
        self._flops = self._float32_flops = self._traffic = 0.0
        self._num_opaque = 0
        self._collectives: Counter[Collective] = Counter()
        self._copies: Counter[str] = Counter()
        self._run(self._module.entry, 1)

    def counts(self) -> Audit:
        """Returns the sums, beside nothing."""
        names = [name for computation in self._module.values() for name in computation]
        collectives = [
            Collective(c.kind, c.dtype, c.crosses_hosts, c.overlapped, bytes_)
            for c, bytes_ in self._collectives.most_common()
        ]
        copies = [Copies(bytes_, name) for name, bytes_ in self._copies.most_common(_NUM_COPIES)]
        return Audit(
            product_flops=self._flops,
            float32_product_flops=self._float32_flops,
            opaque_kernels=self._num_opaque,
            num_instructions=len(names),
            remat_instructions=sum(".remat" in name for name in names),
            traffic_bytes=round(self._traffic),
            largest_copies=tuple(copies),
            collectives=tuple(collectives),
            sent_bytes=sum(c.bytes for c in collectives),
            cross_host_bytes=sum(c.bytes for c in collectives if c.crosses_hosts),
        )

    def _run(self, name: str, times: int) -> None:
        """Adds a computation whose instructions are kernels, in their order."""
        computation = self._module[name]
        flops_at: dict[str, float] = {}  # the FLOPs so far, by the start of each open collective
        for x in computation.values():
            flops, float32_flops = self._module.flops(computation, x)
            self._flops += times * flops
            self._float32_flops += times * float32_flops
            if x.opcode == "while":
                self._run(x.called("body")[0], times * self._module.trips(x))
            elif x.opcode in ("call", "conditional"):
                for called in x.called(_CALLED):  # of branches all, which is at most too much
                    self._run(called, times)
            elif kind := self._kind(computation, x):
                if x.opcode.endswith("-start"):
                    flops_at[x.name] = self._flops
                    continue
                started = computation[x.operands[0]] if x.opcode.endswith("-done") else x
                is_hidden = self._flops > flops_at.get(started.name, self._flops)
                is_hidden &= '"is_sync":true' not in started.text
                self._communicate(computation, started, kind, times, is_hidden)
            elif "tpu_custom_call" in x.text and x.opcode == "custom-call":
                self._num_opaque += 1
            elif not flops and x.opcode not in _FREE:
                self._move(computation, x, times)

    def _kind(self, computation: Computation, x: Instruction) -> str | None:
        """Returns the kind of a collective, or of its start or end; None for anything else."""
        if x.opcode in _KINDS:
            return x.opcode
        kind, _, part = x.opcode.rpartition("-")
        if part not in ("start", "done"):
            return None
        if kind == "async":  # it starts what stands in a computation of its own
            start = computation[x.operands[0]] if part == "done" else x
            return next((y.opcode for y in self._wrapped(start) if y.opcode in _KINDS), None)
        return kind if kind in _KINDS else None

    def _wrapped(self, x: Instruction) -> list[Instruction]:
        return [y for name in x.called("calls") for y in self._module[name].values()]

    def _communicate(
        self, computation: Computation, x: Instruction, kind: str, times: int, is_hidden: bool
    ) -> None:
        """Adds the bytes that a device sends: (n - 1) / n of the whole, and twice that for sums."""
        operands = computation.shapes(x.operands)
        held = sum(shape.bytes for shape in operands)
        text = next((y.text for y in self._wrapped(x) if y.opcode == kind), x.text)
        if kind == "collective-permute":
            pairs = np.array(re.findall(r"\{(\d+),(\d+)\}", text), int)
            sent, crosses = float(held), np.ptp(self._hosts[pairs], axis=1).any()
        else:
            groups = parse_groups(text, len(self._hosts))
            size = groups.shape[1]
            whole = {"all-gather": size * held, "all-reduce": 2 * held}.get(kind, held)
            sent, crosses = whole * (1 - 1 / size), np.ptp(self._hosts[groups], axis=1).any()
        of_kind = Collective(kind, operands[0].dtype, bool(crosses), is_hidden)
        self._collectives[of_kind] += round(times * sent)

    def _move(self, computation: Computation, x: Instruction, times: int) -> None:
        bytes_ = times * self._module.traffic(computation, x)
        self._traffic += bytes_
        if self._module.only_moves(x):
            base = re.sub(r"[.\d]*(\.clone)?[.\d]*$", "", x.name)
            self._copies[f"{base} {x.shapes[0]}"] += bytes_
