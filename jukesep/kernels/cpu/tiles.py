"""The innermost loop of a matrix product, for numba: a tile of the result stays in registers.

numba does not keep a block of vectors in registers through a loop, so this loop is written in
LLVM's intermediate representation.
"""

from __future__ import annotations

import sys
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic

_FEATURES = llvm.get_host_cpu_features()
_WIDE = _FEATURES.get("avx512f", False)
REGISTER = 64 if _WIDE else 32 if _FEATURES.get("avx2", False) else 16
"""Bytes of a vector register."""
_REGISTERS = 32 if _WIDE or _FEATURES.get("neon", False) else 16
SHAPES = ((4, 4), (8, 2), (8, 1)) if _REGISTERS == 32 else ((4, 2), (4, 2), (8, 1))
"""Rows and vectors of three tiles: sums fill half of the registers; more would be spilled."""

NAMES = (
    *("bias", "bias0", "start", "start0", "start_down", "a", "a0", "a_down", "a_right"),
    *("b", "b0", "b_down", "c", "c0", "c_down", "n"),
)
INDEX = ir.IntType(64)
BYTE_LANE = ir.IntType(32)
PAIR = ir.IntType(32)
ROUNDS = _WIDE and _FEATURES.get("avx512bf16", False)
"""Whether the processor multiplies bfloat16; each product of a pair is added in float32."""
DOT = "llvm.x86.avx512bf16.dpbf16ps.512"
ROUND = "llvm.x86.avx512bf16.cvtne2ps2bf16.512"
LANES = 16
"""Pairs that `round_chunk` makes."""


@intrinsic
def _add(typing, array, place, number):  # type: ignore[no-untyped-def]
    """array[place] += number, atomically, for integers; returns the value before."""
    signature = types.int64(array, place, number)

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        made = cgutils.create_struct_proxy(signature.args[0])(context, builder, args[0])
        return builder.atomic_rmw("add", builder.gep(made.data, [args[1]]), args[2], "seq_cst")

    return signature, generate


add: Any = _add

if sys.platform == "win32":

    @njit
    def let_others_run() -> None:
        """Do nothing: the system has no call for it."""

else:
    let_others_run = types.ExternalFunction("sched_yield", types.int32())


class _Brain(ir.Type):
    """bfloat16, for which llvmlite has no type."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Brain)

    def __hash__(self) -> int:
        return hash(_Brain)


def _tile(rows: int, vectors: int, active: bool, rounded: bool = False) -> Any:
    """`tile` for numba, for so many rows and vectors; with `active`, of relu(a).

    With `rounded`, a and b hold pairs of bfloat16, neighbours along the depth, and n counts pairs.
    """

    @intrinsic
    def tile(  # type: ignore[no-untyped-def]
        typing,
        bias,
        bias0,
        start,
        start0,
        start_down,
        a,
        a0,
        a_down,
        a_right,
        b,
        b0,
        b_down,
        c,
        c0,
        c_down,
        n,
    ):
        signature = types.void(
            *(bias, bias0, start, start0, start_down, a, a0, a_down, a_right),
            *(b, b0, b_down, c, c0, c_down, n),
        )

        def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
            number = context.get_value_type(c.dtype)
            size = c.dtype.bitwidth // 8
            lanes = REGISTER // size
            vector = ir.VectorType(number, lanes)
            # Factors are loaded as numbers, or pairs as integers.
            moved = ir.VectorType(PAIR, lanes) if rounded else vector
            pairs = ir.VectorType(_Brain(), 2 * lanes) if rounded else vector
            arg = dict(zip(NAMES, args, strict=True))
            kinds = dict(zip(NAMES, signature.args, strict=True))

            def pointer(array: str, place: Any) -> Any:
                made = cgutils.create_struct_proxy(kinds[array])(context, builder, arg[array])
                return builder.gep(made.data, [place])

            def row(base: Any, down: Any, index: int) -> Any:
                return builder.gep(base, [builder.mul(down, INDEX(index))])

            def at(base: Any, index: int, kind: Any = vector) -> Any:
                place = builder.gep(base, [INDEX(index * lanes)])
                return builder.bitcast(place, kind.as_pointer())

            def load(place: Any) -> Any:
                value = builder.load(place)
                value.align = size
                return value

            def spread(value: Any) -> Any:
                none = ir.Constant(moved, ir.Undefined)
                one = builder.insert_element(none, value, BYTE_LANE(0))
                first = ir.Constant(ir.VectorType(BYTE_LANE, lanes), [0] * lanes)
                return builder.shuffle_vector(one, none, first)

            fused = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(vector, [vector, pairs, pairs] if rounded else [vector] * 3),
                DOT if rounded else f"llvm.fma.v{lanes}f{8 * size}",
            )
            zero = ir.Constant(vector, [0.0] * lanes)
            bias_base = pointer("bias", arg["bias0"])
            initial = [load(at(bias_base, v)) for v in range(vectors)]
            a_rows = [row(pointer("a", arg["a0"]), arg["a_down"], i) for i in range(rows)]
            b_base = pointer("b", arg["b0"])
            before = builder.block
            loop = builder.append_basic_block("tile.loop")
            after = builder.append_basic_block("tile.after")
            builder.branch(loop)

            builder.position_at_end(loop)
            step = builder.phi(INDEX)
            step.add_incoming(INDEX(0), before)
            sums = [builder.phi(vector) for _ in range(rows * vectors)]
            b_row = builder.gep(b_base, [builder.mul(step, arg["b_down"])])
            b_now = [builder.bitcast(load(at(b_row, v, moved)), pairs) for v in range(vectors)]
            a_place = builder.mul(step, arg["a_right"])
            new = []
            for i in range(rows):
                factor = spread(load(builder.gep(a_rows[i], [a_place])))
                if active:  # one instruction, in which NaN stays NaN
                    below = builder.fcmp_ordered(">", zero, factor)
                    factor = builder.select(below, zero, factor)
                factor = builder.bitcast(factor, pairs)
                for v in range(vectors):
                    total = sums[i * vectors + v]
                    given = [total, factor, b_now[v]] if rounded else [factor, b_now[v], total]
                    new.append(builder.call(fused, given))
            following = builder.add(step, INDEX(1))
            step.add_incoming(following, loop)
            for i, (total, value) in enumerate(zip(sums, new, strict=True)):
                total.add_incoming(initial[i % vectors], before)
                total.add_incoming(value, loop)
            builder.cbranch(builder.icmp_signed("<", following, arg["n"]), loop, after)

            builder.position_at_end(after)
            start_base, c_base = pointer("start", arg["start0"]), pointer("c", arg["c0"])
            for i in range(rows):
                start_row = row(start_base, arg["start_down"], i)
                c_row = row(c_base, arg["c_down"], i)
                for v in range(vectors):
                    total = builder.fadd(load(at(start_row, v)), new[i * vectors + v])
                    builder.store(total, at(c_row, v)).align = size
            return context.get_dummy_value()

        return signature, generate

    return tile


def _round(active: bool) -> Any:
    """`round_chunk` for numba; with `active`, of relu(x)."""

    @intrinsic
    def round_chunk(typing, pairs, p0, x, x0, second0, along):  # type: ignore[no-untyped-def]
        """pairs[p0:][:16] = the 32 numbers x[x0:][:16] and x[second0:][:16] in bfloat16.

        With `along` a pair holds two neighbours, else one number of each of the two ranges.
        """
        signature = types.void(pairs, p0, x, x0, second0, along)

        def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
            def pointer(array: int, place: int) -> Any:
                kind = signature.args[array]
                made = cgutils.create_struct_proxy(kind)(context, builder, args[array])
                return builder.gep(made.data, [args[place]])

            half = ir.VectorType(ir.FloatType(), LANES)
            zero, values = ir.Constant(half, [0.0] * LANES), []
            for place in (3, 4):
                value = builder.load(builder.bitcast(pointer(2, place), half.as_pointer()))
                value.align = 4
                if active:
                    below = builder.fcmp_ordered(">", zero, value)
                    value = builder.select(below, zero, value)
                values.append(value)
            made = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(ir.VectorType(_Brain(), 2 * LANES), [half] * 2),
                ROUND,
            )
            halves = ir.VectorType(ir.IntType(16), 2 * LANES)
            found = builder.bitcast(builder.call(made, [values[1], values[0]]), halves)
            order = [lane + LANES * odd for lane in range(LANES) for odd in range(2)]
            mixed = builder.shuffle_vector(
                found, found, ir.Constant(ir.VectorType(BYTE_LANE, 2 * LANES), order)
            )
            found = builder.select(args[5], found, mixed)
            to = builder.bitcast(pointer(0, 1), halves.as_pointer())
            builder.store(found, to).align = 4
            return context.get_dummy_value()

        return signature, generate

    return round_chunk


def _strip(rows: int, vectors: int, active: bool, rounded: bool = False) -> Any:
    """`strip` for numba: all rows of a strip of the result, `vectors` wide."""
    tile = _tile(rows, vectors, active, rounded)
    single = _tile(1, vectors, active, rounded)

    @njit(nogil=True, error_model="numpy")
    def strip(bias, start, a, right, b, c, n, height):  # type: ignore[no-untyped-def]
        (o, o0), (s, s0, s_down), (f, f0, f_down) = bias, start, a
        (g, g0, g_down), (y, y0, y_down) = b, c
        i = 0
        while i + rows <= height:
            u, v, w = s0 + i * s_down, f0 + i * f_down, y0 + i * y_down
            tile(o, o0, s, u, s_down, f, v, f_down, right, g, g0, g_down, y, w, y_down, n)
            i += rows
        while i < height:
            u, v, w = s0 + i * s_down, f0 + i * f_down, y0 + i * y_down
            single(o, o0, s, u, s_down, f, v, f_down, right, g, g0, g_down, y, w, y_down, n)
            i += 1

    return strip


def _strips(active: bool, rounded: bool = False) -> list[Any]:
    """A strip for each of SHAPES; one function for equal shapes, to be compiled once."""
    made = {shape: _strip(*shape, active, rounded) for shape in set(SHAPES)}
    return [made[shape] for shape in SHAPES]


STRIPS, ACTIVE_STRIPS = _strips(False), _strips(True)
ROUNDED_STRIPS = _strips(False, rounded=True)
round_chunk, round_chunk_active = _round(False), _round(True)
