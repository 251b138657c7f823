"""Explicit vectors of lanes in LLVM IR: types, constants, loads, stores and transposes.

LLVM legalises `<W x float>` for AVX-512, AVX2, SSE and NEON; values that a loop carries stay in registers. Every
floating operation is one IEEE-754 binary32 operation: no fastmath flag is set, so nothing is contracted or reordered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import llvmlite.ir as ir

from quantmill.qkernels.lanes.native import ELEMENT_BYTES, Processor

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32, F64 = ir.FloatType(), ir.DoubleType()
# What `Encoder.scratch` calls the elements of an array.
ELEMENTS = {"f32": F32, "i32": I32, "u8": I8}
_SIZES = {ELEMENTS[kind]: size for kind, size in ELEMENT_BYTES.items()}
# 1.5 · 2^23: adding it to a float below 2^22 leaves the nearest whole number in the low bits.
ROUNDER = 12582912.0


class LaneBuilder(ir.IRBuilder):
    """Builds for one processor, whose number of lanes changes the speed, never the bytes."""

    def __init__(self, block: ir.Block, processor: Processor) -> None:
        super().__init__(block)
        self.processor, self.width = processor, processor.width
        self.bytes, self.truths, self.ints, self.floats = (
            ir.VectorType(kind, self.width) for kind in (I8, I1, I32, F32)
        )

    def lanes(self, kind: str) -> ir.VectorType:
        """Lanes of what `Encoder.scratch` calls `kind`."""
        return ir.VectorType(ELEMENTS[kind], self.width)


def function(
    module: ir.Module, name: str, processor: Processor, kinds: Sequence[ir.Type], numbers: int
) -> tuple[LaneBuilder, list[ir.Value]]:
    """A function i32 name(arrays of `kinds`, so many i64), and its arguments."""
    signature = ir.FunctionType(I32, [*(kind.as_pointer() for kind in kinds), *[I64] * numbers])
    function = ir.Function(module, signature, name)
    return LaneBuilder(function.append_basic_block("entry"), processor), list(function.args)


def size_of(vector: ir.VectorType) -> int:
    """Bytes of a vector in memory."""
    return _SIZES[vector.element] * vector.count


def is_lanes(value: object) -> bool:
    return isinstance(value, ir.Value) and isinstance(value.type, ir.VectorType)


def repeated(value: float, vector: ir.VectorType) -> ir.Constant:
    """The same constant in every place."""
    return ir.Constant(vector, [value] * vector.count)


def splat(builder: ir.IRBuilder, scalar: ir.Value, count: int) -> ir.Value:
    """`count` places, all equal to one scalar."""
    vector = ir.VectorType(scalar.type, count)
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, repeated(0, ir.VectorType(I32, count)))


def call(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    """One of LLVM's own functions."""
    known = builder.module.globals.get(name)
    signature = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(known or ir.Function(builder.module, signature, name), arguments)


def any_of(builder: ir.IRBuilder, truths: ir.Value) -> ir.Value:
    """Whether one of a vector's is."""
    flags = builder.bitcast(truths, ir.IntType(truths.type.count))
    return builder.icmp_unsigned("!=", flags, flags.type(0))


def part(builder: ir.IRBuilder, value: ir.Value, first: int, count: int) -> ir.Value:
    mask = ir.Constant(ir.VectorType(I32, count), list(range(first, first + count)))
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), mask)


def joined(builder: ir.IRBuilder, parts: Sequence[ir.Value]) -> ir.Value:
    """Vectors of equal length, a power of two of them, end to end."""
    while len(parts) > 1:
        count = parts[0].type.count
        mask = ir.Constant(ir.VectorType(I32, 2 * count), list(range(2 * count)))
        parts = [builder.shuffle_vector(a, b, mask) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def local(builder: ir.IRBuilder, kind: ir.Type) -> ir.Value:
    """A variable of the function, wherever the builder stands."""
    with builder.goto_entry_block():
        return builder.alloca(kind)


@contextmanager
def loop(
    builder: ir.IRBuilder, begin: ir.Value, end: ir.Value, step: ir.Value | None = None
) -> Iterator[ir.Value]:
    """for i in range(begin, end, step), of the operands' integer type; the body is built inside the `with`."""
    before = builder.basic_block
    head, body, after = (builder.append_basic_block(name) for name in ("head", "body", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    i = builder.phi(begin.type)
    i.add_incoming(begin, before)
    builder.cbranch(builder.icmp_signed("<", i, end), body, after)
    builder.position_at_end(body)
    yield i
    following = builder.add(i, step or ir.Constant(i.type, 1), flags=["nsw"])
    i.add_incoming(following, builder.basic_block)
    builder.branch(head)
    builder.position_at_end(after)


def interleave(builder: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """The transpose of a square of n vectors with n elements (n a power of two), in log2(n) rounds of shuffles."""
    n = len(rows)

    def mask(positions: list[int]) -> ir.Constant:
        return ir.Constant(ir.VectorType(I32, n), positions)

    step = n // 2
    while step:
        result = list(rows)
        for i in range(n):
            if i & step:
                continue
            a, b = rows[i], rows[i | step]
            low = [n + (q ^ step) if q & step else q for q in range(n)]
            high = [n + q if q & step else q | step for q in range(n)]
            result[i] = builder.shuffle_vector(a, b, mask(low))
            result[i | step] = builder.shuffle_vector(a, b, mask(high))
        rows = result
        step //= 2
    return rows


def zipped(builder: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """Squares of 16 bytes side by side, each transposed: 16 vectors of 16 or 32 bytes.

    Four rounds of what x86 calls unpack and AArch64 zip: the top bit of a row's number becomes the lowest of its bytes'
    places, theirs the lowest of the rows' numbers.
    """
    n = rows[0].type.count
    half = len(rows) // 2
    low, high = (
        [
            square + place + i + other
            for square in range(0, n, 2 * half)
            for i in range(half)
            for other in (0, n)
        ]
        for place in (0, half)
    )
    masks = [ir.Constant(ir.VectorType(I32, n), mask) for mask in (low, high)]
    for _ in range(4):
        pairs = zip(rows[:half], rows[half:], strict=True)
        rows = [builder.shuffle_vector(a, b, mask) for a, b in pairs for mask in masks]
    return rows


def from_half(builder: ir.IRBuilder, halves: ir.Value) -> ir.Value:
    """Floats of the low sixteen bits of integers, which are halves (ggml-impl.h: ggml_compute_fp16_to_fp32)."""
    kind = halves.type
    floats = ir.VectorType(F32, kind.count)

    def pattern(bits: int) -> ir.Constant:
        return repeated(bits, kind)

    word = builder.shl(halves, pattern(16))
    twice = builder.shl(word, pattern(1))
    normal = builder.bitcast(builder.add(builder.lshr(twice, pattern(4)), pattern(0xE0 << 23)), floats)
    normal = builder.fmul(normal, repeated(2.0**-112, floats))
    small = builder.bitcast(builder.or_(builder.lshr(twice, pattern(17)), pattern(126 << 23)), floats)
    small = builder.fsub(small, repeated(0.5, floats))
    size = builder.select(builder.icmp_unsigned("<", twice, pattern(1 << 27)), small, normal)
    sign = builder.and_(word, pattern(0x80000000))
    return builder.bitcast(builder.or_(sign, builder.bitcast(size, kind)), floats)


def from_brain(builder: ir.IRBuilder, words: ir.Value) -> ir.Value:
    """Floats of the low sixteen bits of integers, which are bfloat16."""
    word = builder.shl(words, repeated(16, words.type))
    return builder.bitcast(word, ir.VectorType(F32, words.type.count))


def to_half(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """Integers whose low sixteen bits are the nearest halves of floats, ties to even.

    By float arithmetic, as processors without such an instruction do it (ggml-impl.h: ggml_compute_fp32_to_fp16).
    Adding a power of two that is 2^13 units of the result's last place rounds to it.
    """
    floats = value.type
    ints = ir.VectorType(I32, floats.count)

    def pattern(bits: int) -> ir.Constant:
        return repeated(bits, ints)

    twice = builder.shl(builder.bitcast(value, ints), pattern(1))
    size = call(builder, f"llvm.fabs.v{floats.count}f32", floats, value)
    base = builder.fmul(builder.fmul(size, repeated(2.0**112, floats)), repeated(2.0**-110, floats))
    exponent = builder.and_(twice, pattern(0xFF000000))
    least = pattern(0x71000000)
    exponent = builder.select(builder.icmp_unsigned("<", exponent, least), least, exponent)
    bias = builder.bitcast(builder.add(builder.lshr(exponent, pattern(1)), pattern(0x07800000)), floats)
    rounded = builder.bitcast(builder.fadd(bias, base), ints)
    high = builder.and_(builder.lshr(rounded, pattern(13)), pattern(0x7C00))
    half = builder.add(high, builder.and_(rounded, pattern(0x0FFF)))
    half = builder.select(builder.icmp_unsigned(">", twice, pattern(0xFF000000)), pattern(0x7E00), half)
    sign = builder.and_(builder.lshr(builder.bitcast(value, ints), pattern(16)), pattern(0x8000))
    return builder.or_(sign, half)


def to_brain(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """Integers whose low sixteen bits are the nearest bfloat16 of floats, ties to even."""
    ints = ir.VectorType(I32, value.type.count)

    def pattern(bits: int) -> ir.Constant:
        return repeated(bits, ints)

    word = builder.bitcast(value, ints)
    odd = builder.and_(builder.lshr(word, pattern(16)), pattern(1))
    rounded = builder.lshr(builder.add(builder.add(word, pattern(0x7FFF)), odd), pattern(16))
    nan = builder.icmp_unsigned(">", builder.shl(word, pattern(1)), pattern(0xFF000000))
    return builder.select(nan, builder.or_(builder.lshr(word, pattern(16)), pattern(64)), rounded)


def load_run(
    builder: ir.IRBuilder, array: ir.Value, place: ir.Value, kind: ir.VectorType, align: int
) -> ir.Value:
    """A vector from element `place` of an array of numbers on."""
    return builder.load(builder.bitcast(builder.gep(array, [place]), kind.as_pointer()), align=align)


def store_run(builder: ir.IRBuilder, run: ir.Value, array: ir.Value, place: ir.Value, align: int) -> None:
    builder.store(run, builder.bitcast(builder.gep(array, [place]), run.type.as_pointer()), align=align)


def store_some(
    builder: ir.IRBuilder, run: ir.Value, array: ir.Value, place: ir.Value, first: int, left: ir.Value
) -> None:
    """Those of 16 floats, the numbers `first` … first + 15 of a row of `left` i32, that the row has."""
    ints = ir.VectorType(I32, 16)
    numbers = ir.Constant(ints, list(range(first, first + 16)))
    wanted = builder.icmp_signed("<", numbers, splat(builder, left, 16))
    pointer = builder.bitcast(builder.gep(array, [place]), run.type.as_pointer())
    call(builder, "llvm.masked.store.v16f32.p0", ir.VoidType(), run, pointer, I32(4), wanted)


def prefetch(builder: ir.IRBuilder, address: ir.Value) -> None:
    """Ask for memory that will be read; nothing is wrong with an address behind the end."""
    place = builder.bitcast(address, I8.as_pointer())
    call(builder, "llvm.prefetch.p0", ir.VoidType(), place, I32(0), I32(2), I32(1))


def first_of(builder: LaneBuilder, number: ir.Value, count: ir.Value) -> ir.Value:
    """Where the lanes of the tile of that number begin among `count`, the last of them not beyond the end."""
    first, last = builder.mul(number, I64(builder.width)), builder.sub(count, I64(builder.width))
    return builder.select(builder.icmp_signed("<", first, last), first, last)
