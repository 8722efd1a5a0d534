"""XLA's optimized HLO text: its instructions, and the operations and the traffic of each kernel.

Operations are those of matrix products alone: `dot`, `convolution`, cuBLAS's products and cuDNN's
attention. Traffic is what a kernel reads from memory and writes to it; slices that are read or
updated in place count as slices.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16}
_SLICES = ("dynamic-slice", "slice", "gather")
_MOVES = {"parameter", "constant", "tuple", "bitcast", "copy", "copy-start", "transpose", "reshape"}
_MOVES |= {"convert", "dynamic-slice", "dynamic-update-slice", "slice", "concatenate", "pad"}
_MOVES |= {"broadcast"}


class Shape(NamedTuple):
    """The shape of an array."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes of memory, without padding."""
        bits = re.search(r"\d+", self.dtype)
        return self.size * _BYTES.get(self.dtype, int(bits[0]) // 8 if bits else 0)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class Instruction:
    """One instruction of a computation."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    """Shapes of the result: one, or those of a tuple."""
    operands: tuple[str, ...]
    """Names of the operands, which are in the same computation."""
    text: str
    """Operands and attributes, as XLA prints them."""
    is_root: bool

    @property
    def bytes(self) -> int:
        """Bytes of the result."""
        return sum(shape.bytes for shape in self.shapes)

    @property
    def constant(self) -> int | None:
        """The integer that this is; None for anything else."""
        number = self.attribute(r"^(\d+)\)")
        return int(number) if self.opcode == "constant" and number else None

    def attribute(self, pattern: str) -> str:
        """Returns the first group of a pattern that is found in the text, else ""."""
        found = re.search(pattern, self.text)
        return found[1] if found else ""

    def called(self, attribute: str) -> list[str]:
        """Returns the names of the computations that an attribute (a pattern) holds."""
        held = re.findall(rf"\b(?:{attribute})=(?:\{{([^}}]*)\}}|(%[\w.-]+))", self.text)
        return re.findall(r"%([\w.-]+)", " ".join(a + b for a, b in held))


class Computation(dict[str, Instruction]):
    """Instructions by name, in the order of the schedule."""

    @property
    def root(self) -> Instruction:
        """The instruction whose result is that of the computation."""
        return next(x for x in self.values() if x.is_root)

    @cached_property
    def parameters(self) -> list[str]:
        """Names of the parameters, in their order."""
        found = [x for x in self.values() if x.opcode == "parameter"]
        return [x.name for x in sorted(found, key=lambda x: int(x.text.partition(")")[0]))]

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Instructions that read each one; bitcasts are looked through."""
        found: dict[str, list[Instruction]] = {name: [] for name in self}
        for x in reversed(self.values()):
            readers = found[x.name] if x.opcode == "bitcast" and not x.is_root else [x]
            for name in x.operands:
                found[name] += readers
        return found

    def source(self, name: str) -> Instruction:
        """Returns the instruction that made a value; bitcasts are looked through."""
        x = self[name]
        return self.source(x.operands[0]) if x.opcode == "bitcast" else x

    def shapes(self, names: Sequence[str]) -> list[Shape]:
        """Returns the shapes of values, those of tuples one by one."""
        return [shape for name in names for shape in self[name].shapes]


class Module(dict[str, Computation]):
    """The computations of a program by name, read from its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.entry = ""
        self._flops: dict[str, tuple[float, float]] = {}
        current = Computation()
        for line in text.splitlines():
            if line.startswith(("%", "ENTRY")) and line.endswith("{"):
                name = line.removeprefix("ENTRY ").lstrip("%").split(" ", 1)[0]
                current = self[name] = Computation()
                self.entry = name if line.startswith("ENTRY") else self.entry
            elif found := re.match(r" +(ROOT )?%?([\w.-]+) = ", line):
                name = found[2]
                current[name] = _instruction(name, line[found.end() :], is_root=bool(found[1]))

    def trips(self, x: Instruction) -> int:
        """Returns how often the body of a loop runs; 1 where the text does not say.

        Compilers for TPUs do not write it down. There a counter begins at zero, and has to stay
        below a constant; the body adds another constant to it.
        """
        if known := x.attribute(r'known_trip_count":\{"n":"(\d+)"'):
            return int(known)
        condition, body = (self[name] for part in ("condition", "body") for name in x.called(part))
        check = condition.root
        if check.opcode != "compare" or "direction=LT" not in check.text:
            return 1
        counter, bound = (condition.source(name) for name in check.operands)
        place = counter.attribute(r"index=(\d+)")
        if bound.constant is None or not place or body.root.opcode != "tuple":
            return 1
        next_counter = body.source(body.root.operands[int(place)])
        steps = [n for name in next_counter.operands if (n := body[name].constant) is not None]
        return math.ceil(bound.constant / (steps[0] if steps else 1))

    def flops(self, computation: Computation, x: Instruction) -> tuple[float, float]:
        """Returns the FLOPs of an instruction's products, and of those with float32 operands."""
        if x.opcode in ("fusion", "async-start"):
            parts = [self._flops_of(name) for name in x.called("calls")]
            return sum(flops for flops, _ in parts), sum(flops for _, flops in parts)
        if x.opcode not in ("dot", "convolution", "custom-call"):
            return 0.0, 0.0
        operands = computation.shapes(x.operands)
        flops = _product_flops(x, operands)
        is_wide = all(shape.dtype == "f32" for shape in operands[:2])
        return flops, flops if is_wide else 0.0

    def _flops_of(self, name: str) -> tuple[float, float]:
        if name not in self._flops:
            parts = [self.flops(self[name], x) for x in self[name].values()]
            self._flops[name] = sum(a for a, _ in parts), sum(b for _, b in parts)
        return self._flops[name]

    def traffic(self, computation: Computation, x: Instruction) -> int:
        """Returns the bytes that a kernel without products reads and writes."""
        called = x.called("calls") if x.opcode == "fusion" else []
        if called:
            inside = self[called[0]]
            read = [
                _read(inside, parameter, computation[name].bytes)
                for parameter, name in zip(inside.parameters, x.operands, strict=True)
            ]
            return sum(read) + _written(inside)
        if x.opcode == "dynamic-update-slice":
            return 2 * computation[x.operands[1]].bytes
        if x.opcode in _SLICES:
            return 2 * x.bytes
        return x.bytes + sum(shape.bytes for shape in computation.shapes(x.operands))

    def only_moves(self, x: Instruction) -> bool:
        """Returns True for a kernel that copies, fills or converts, and computes nothing."""
        if x.opcode != "fusion":
            return x.opcode in _MOVES
        inside = [y for name in x.called("calls") for y in self[name].values()]
        return all(y.opcode in _MOVES or y.shapes[0].dims == () for y in inside)


def parse_groups(text: str, num_devices: int) -> np.ndarray:
    """Returns the groups of devices that communicate, int [groups, devices of each].

    XLA writes them as lists, as an iota that is reshaped and transposed, or by axes of a mesh.
    Without any, all devices are one group.
    """
    if listed := re.search(r"replica_groups=\{((?:\{[\d,]+\},?)+)\}", text):
        return np.array([_ints(row) for row in re.findall(r"[\d,]+(?=\})", listed[1])])
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        return _iota(iota[2], iota[3]).reshape(_ints(iota[1]))
    axes = re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((\S+)\))? \{(.*?)\}", text)
    if axes is None:
        return np.arange(num_devices)[None]
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes[1])}
    order = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", axes[2] or "")
    ids = _iota(order[1], order[2]) if order else np.arange(math.prod(sizes.values()))
    # A name alone is a whole axis. 'x':(2)4 are 4 places of x, each a part of one of 2 parts.
    named = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes[3])
    parts = {name: (int(outer or 1), int(own or sizes[name])) for name, outer, own in named}
    cube = [
        part
        for name, size in sizes.items()
        for outer, own in [parts.get(name, (size, 1))]
        for part in (outer, own, size // outer // own)
    ]
    grouped = range(1, len(cube), 3)
    last = range(-len(grouped), 0)
    return np.moveaxis(ids.reshape(cube), grouped, last).reshape(-1, math.prod(cube[1::3]))


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(i) for i in text.split(","))


def _iota(shape: str, transposed: str | None) -> np.ndarray:
    numbers = np.arange(math.prod(_ints(shape))).reshape(_ints(shape))
    return (numbers.transpose(_ints(transposed)) if transposed else numbers).ravel()


def _instruction(name: str, text: str, *, is_root: bool) -> Instruction:
    end = _closing(text) if text.startswith("(") else text.index(" ")
    shapes = tuple(
        Shape(dtype, tuple(int(d) for d in dims.split(",") if d))
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", text[:end])
    )
    opcode, _, rest = text[end:].strip().partition("(")
    operands = re.findall(r"%([\w.-]+)", rest[: _closing(f"({rest}") - 1])
    return Instruction(name, opcode, shapes, tuple(operands), rest, is_root)


def _closing(text: str) -> int:
    """Returns the index after the parenthesis that closes the first one."""
    depth = 0
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.end()
    return len(text)


def _written(inside: Computation) -> int:
    """Returns the bytes that a fusion writes; where it updates a slice, those of the slice."""
    root = inside.root
    names = root.operands if root.opcode == "tuple" else (root.name,)
    results = [inside.source(name) for name in names]
    updates = [inside[x.operands[1]] for x in results if x.opcode == "dynamic-update-slice"]
    whole = [x for x in results if x.opcode != "dynamic-update-slice"]
    return sum(x.bytes for x in (*updates, *whole))


def _read(inside: Computation, parameter: str, size: int) -> int:
    """Returns the bytes that a fusion reads of a parameter of `size` bytes."""
    slices = 0
    for x in inside.users[parameter]:
        if x.opcode in _SLICES:
            slices += x.bytes
        elif x.opcode != "dynamic-update-slice" or (inside.source(x.operands[0]).name != parameter):
            return size
    return min(size, slices)


def _product_flops(x: Instruction, operands: Sequence[Shape]) -> float:
    """Returns the FLOPs of a matrix product, a convolution or a known call; else 0."""
    target = x.attribute(r'custom_call_target="([^"]*)"')
    if target.startswith("__cudnn$fmha"):
        return _attention_flops(x, operands, products=5 if "Backward" in target else 2)
    if x.opcode == "convolution":
        return _convolution_flops(x, *operands)
    if x.opcode != "dot" and "gemm" not in target and "matmul" not in target:
        return 0.0
    contracted = x.attribute(r'lhs_contracting_dim(?:ension)?s"?[=:] ?[\[{]([\d", ]+)')
    axes = [int(axis) for axis in re.findall(r"\d+", contracted)]
    return 2.0 * x.shapes[0].size * math.prod(operands[0].dims[axis] for axis in axes)


def _convolution_flops(x: Instruction, inputs: Shape, kernel: Shape) -> float:
    """Returns the FLOPs of a convolution, without those on padding.

    Compilers for TPUs write batches of products as convolutions of which most is padding.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", x.text)
    assert labels is not None, x.text
    read, taps, written = (
        dict(zip(names, shape.dims, strict=True))
        for names, shape in zip(labels.groups(), (inputs, kernel, x.shapes[0]), strict=True)
    )
    window = dict(part.split("=") for part in x.attribute(r"window=\{([^}]*)\}").split())
    flops = 2.0 * written["b"] * taps["i"] * taps["o"]
    for axis, label in enumerate(sorted(taps.keys() - {"i", "o"})):
        stride, inputs_apart, taps_apart = (
            int(window[name].split("x")[axis]) if name in window else 1
            for name in ("stride", "lhs_dilate", "rhs_dilate")
        )
        before = int(window["pad"].split("x")[axis].split("_")[0]) if "pad" in window else 0
        places = np.arange(written[label])[:, None] * stride - before
        places = places + np.arange(taps[label]) * taps_apart
        is_inside = (places >= 0) & (places <= (read[label] - 1) * inputs_apart)
        flops *= int(np.sum(is_inside & (places % inputs_apart == 0)))
    return flops


def _attention_flops(x: Instruction, operands: Sequence[Shape], *, products: int) -> float:
    """Returns the FLOPs of cuDNN's attention over the pairs that its mask lets through."""
    b, t, n, h = operands[0].dims
    window = int(x.attribute(r'"sliding_window_length": ?"?(\d+)') or 0)
    is_causal = "CAUSAL" in x.attribute(r'"mask_type": ?"(\w*)"')
    pairs = float(t * operands[1].dims[1])
    if window or is_causal:
        window = window or t
        pairs = window * t - window * (window - 1) / 2
    return 2.0 * products * pairs * b * n * h
