"""XLA's text as instructions, and the operations, the traffic and the groups that stand in it."""

import numpy as np
import pytest

from jaxpretrain.planning.hlo import Module, Shape, parse_groups


def module(*lines: str) -> Module:
    """A program of these lines, in which `inside` is a computation that fusions call."""
    return Module("\n".join(["ENTRY %main (a: f32[]) -> f32[] {", *lines, "}"]))


def test_text_becomes_instructions() -> None:
    text = module(
        "  %a = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} parameter(0)",
        "  %b = (s32[], /*index=1*/f32[2]{0}) tuple(%a, /*index=1*/%a), metadata={op_name=(x)}",
        '  ROOT %c.remat.1 = f32[] custom-call(%b, %a), custom_call_target="x", calls={%d, %e}',
    )
    (computation,) = text.values()
    assert text.entry == "main"
    a, b, c = computation.values()
    assert (a.opcode, a.shapes, a.bytes) == ("parameter", (Shape("bf16", (4, 8)),), 64)
    assert (b.operands, b.bytes, str(b.shapes[1])) == (("a", "a"), 12, "f32[2]")
    assert (c.name, c.is_root, c.operands) == ("c.remat.1", True, ("b", "a"))
    assert c.attribute('custom_call_target="(.*?)"') == "x"
    assert c.called("calls|body") == ["d", "e"]
    assert computation.parameters == ["a"]


CUDNN = (
    '%s, custom_call_target="__cudnn$fmhaSoftmax%s", backend_config={"mask_type": "%s", '
    '"sliding_window_length": %d}'
)


@pytest.mark.parametrize(
    ("line", "flops", "float32"),
    [
        ("f32[4,16]{1,0} dot(%a, %b), lhs_contracting_dims={1}", 2 * 4 * 8 * 16, True),
        ("f32[8,2]{1,0} dot(%a, %a), lhs_contracting_dims={0,1}", 2 * 16 * 32, False),
        (
            '(f32[4,16]{1,0}, s8[9]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", '
            'backend_config={"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}',
            2 * 4 * 16 * 8 + 0,
            True,
        ),
        ("f32[4,16]{1,0} convolution(%a, %b), dim_labels=bf_io->bf", 2 * 4 * 8 * 16, True),
        (f"bf16[9]{{0}} custom-call({CUDNN % ('%q, %k, %k)', '', 'NO_MASK', 0)}", 4 * 6000, False),
        (
            f"bf16[9]{{0}} custom-call({CUDNN % ('%q, %k, %k)', 'Backward', 'CAUSAL', 0)}",
            10 * 55 * 2 * 3 * 10,
            False,
        ),
        (
            f"bf16[9]{{0}} custom-call({CUDNN % ('%q, %k, %k)', '', 'CAUSAL', 4)}",
            4 * (10 + 6 * 4) * 2 * 3 * 10,
            False,
        ),
        ('f32[4] custom-call(%a), custom_call_target="Sharding"', 0, False),
        ("f32[4,8]{1,0} add(%a, %a)", 0, False),
    ],
)
def test_products_have_their_operations(line: str, flops: float, float32: bool) -> None:
    kind = "f32" if float32 else "bf16"
    text = module(
        f"  %a = {kind}[4,8]{{1,0}} parameter(0)",
        f"  %b = {kind}[8,16]{{1,0}} parameter(1)",
        "  %q = bf16[2,10,3,10]{3,2,1,0} parameter(2)",
        "  %k = bf16[2,10,3,10]{3,2,1,0} parameter(3)",
        f"  ROOT %x = {line}",
    )
    (computation,) = text.values()
    assert text.flops(computation, computation["x"]) == (flops, flops if float32 else 0.0)


@pytest.mark.parametrize(
    ("inputs", "kernel", "output", "attributes", "taps"),
    [
        # Three products of heads, as compilers for TPUs write them: each meets one tap of three.
        (
            "2,10,6,1",
            "3,7,6,1",
            "2,10,3,7",
            "window={size=1x3 pad=0_0x2_2 rhs_reversal=0x1}, dim_labels=0bf1_1oi0->0b1f",
            10 * 2 * 3,
        ),
        # A window of three moves by two over ten places, with one of padding before them.
        (
            "2,10,6",
            "3,6,7",
            "2,5,7",
            "window={size=3 stride=2 pad=1_0}, dim_labels=b0f_0io->b0f",
            2 * (2 + 4 * 3),
        ),
        # Inputs are two apart, so a window of two meets one; taps that are two apart meet two.
        (
            "2,3,6",
            "2,6,7",
            "2,4,7",
            "window={size=2 lhs_dilate=2}, dim_labels=b0f_0io->b0f",
            2 * 4,
        ),
        (
            "2,5,6",
            "2,6,7",
            "2,3,7",
            "window={size=2 rhs_dilate=2}, dim_labels=b0f_0io->b0f",
            2 * 3 * 2,
        ),
    ],
)
def test_padding_of_a_convolution_is_no_operation(
    inputs: str, kernel: str, output: str, attributes: str, taps: int
) -> None:
    text = module(
        f"  %a = bf16[{inputs}] parameter(0)",
        f"  %b = bf16[{kernel}] parameter(1)",
        f"  ROOT %x = f32[{output}] convolution(%a, %b), {attributes}",
    )
    (computation,) = text.values()
    assert text.flops(computation, computation["x"]) == (2 * 6 * 7 * taps, 0.0)


@pytest.mark.parametrize(
    ("bound", "direction", "step", "attributes", "trips"),
    [
        ("s32[] constant(5)", "LT", 1, "", 5),
        ("s32[] constant(6)", "LT", 2, "", 3),
        ("s32[] constant(5)", "LT", 2, "", 3),
        ("s32[] constant(5)", "LT", 1, ', backend_config={"known_trip_count":{"n":"4"}}', 4),
        ("s32[] constant(5)", "GT", 1, "", 1),
        ("s32[] get-tuple-element(%p), index=0", "LT", 1, "", 1),
    ],
)
def test_a_loop_runs_as_often_as_its_counter_says(
    bound: str, direction: str, step: int, attributes: str, trips: int
) -> None:
    text = Module(
        f"""
%condition (p: (s32[], s32[])) -> pred[] {{
  %p = (s32[], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=1
  %n = {bound}
  ROOT %c = pred[] compare(%i, %n), direction={direction}
}}

%body (q: (s32[], s32[])) -> (s32[], s32[]) {{
  %q = (s32[], s32[]) parameter(0)
  %other = s32[] get-tuple-element(%q), index=0
  %j = s32[] get-tuple-element(%q), index=1
  %step = s32[] constant({step})
  %next = s32[] add(%j, %step)
  ROOT %r = (s32[], s32[]) tuple(%other, %next)
}}

ENTRY %main (a: (s32[], s32[])) -> (s32[], s32[]) {{
  %a = (s32[], s32[]) parameter(0)
  ROOT %w = (s32[], s32[]) while(%a), condition=%condition, body=%body{attributes}
}}
"""
    )
    assert text.trips(text["main"]["w"]) == trips


FUSION = """
%inside (p: f32[32,8], q: s32[], r: f32[1,8]) -> f32[32,8] {
  %q = s32[] parameter(1)
  %p = f32[32,8]{1,0} parameter(0)
  %r = f32[1,8]{1,0} parameter(2)
BODY
}

ENTRY %main (p: f32[32,8], q: s32[], r: f32[1,8]) -> f32[32,8] {
  %a = f32[32,8]{1,0} parameter(0)
  %b = s32[] parameter(1)
  %c = f32[1,8]{1,0} parameter(2)
  ROOT %f = f32[32,8]{1,0} fusion(%a, %b, %c), kind=kLoop, calls=%inside
}
"""


@pytest.mark.parametrize(
    ("body", "traffic", "moves"),
    [
        # Reads p and r, writes all.
        ("  %n = f32[1,8]{1,0} add(%p, %r)\n  ROOT %o = f32[32,8]{1,0} negate(%n)", 2080, False),
        # A slice of p is read, and as much written.
        ("  ROOT %o = f32[1,8]{1,0} dynamic-slice(%p, %q)", 64, True),
        # A slice of p is written in place; bitcasts are nothing.
        (
            "  %n = f32[32,8]{1,0} bitcast(%p)\n"
            "  ROOT %o = f32[32,8]{1,0} dynamic-update-slice(%n, %r, %q)",
            64 + 4,
            True,
        ),
        # Both: a slice is read and updated.
        (
            "  %n = f32[1,8]{1,0} dynamic-slice(%p, %q)\n  %m = f32[1,8]{1,0} add(%n, %r)\n"
            "  %l = f32[32,8]{1,0} dynamic-update-slice(%p, %m, %q)\n"
            "  ROOT %o = (f32[32,8]{1,0}, f32[1,8]{1,0}) tuple(%l, %m)",
            4 * 32 + 4,
            False,
        ),
    ],
)
def test_slices_count_as_slices(body: str, traffic: int, moves: bool) -> None:
    text = Module(FUSION.replace("BODY", body))
    entry = text[text.entry]
    index = 4 if "%q)" in body and "dynamic-update" not in body else 0
    assert text.traffic(entry, entry["f"]) == traffic + index
    assert text.only_moves(entry["f"]) == moves


def test_kernels_outside_fusions_read_and_write() -> None:
    text = module(
        "  %a = f32[32,8]{1,0} parameter(0)",
        "  %b = f32[1,8]{1,0} parameter(1)",
        "  %copy = f32[32,8]{0,1} copy(%a)",
        "  %slice = f32[1,8]{1,0} slice(%a), slice={[0:1], [0:8]}",
        "  ROOT %update = f32[32,8]{1,0} dynamic-update-slice(%a, %b)",
    )
    (computation,) = text.values()
    found = {x: text.traffic(computation, computation[x]) for x in ("copy", "slice", "update")}
    assert found == {"copy": 2048, "slice": 64, "update": 64}


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}, x", [[0, 2], [1, 3]]),
        ("replica_groups={}, x", [[0, 1, 2, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), y", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['x'=2,'y'=2] {'y'}, z", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['x'=2,'y'=2] {'x','y'}", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['x'=2,'y'=2], device_ids=([2,2]T(1,0)) {'y'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['x'=4] {'x':(1)2}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['x'=4] {'x':(2)2}", [[0, 1], [2, 3]]),
    ],
)
def test_groups_are_read_in_all_ways_that_xla_writes_them(text: str, groups: list) -> None:
    np.testing.assert_array_equal(parse_groups(text, 4), groups)
