"""Numbers of one plain type as another's, as LLVM IR: in one walk, so that nothing of them but the result is in memory.

    i32 SOURCE_to_TARGET(source, target, begin, end)

source, target: contiguous numbers of F32, F16 or BF16, at any address; numbers begin … end-1 of them. The result is 1
if one that was written is NaN or infinite, else 0. From a type to itself is a copy, bit for bit.
"""

from __future__ import annotations

import llvmlite.ir as ir

from quantmill.qkernels.lanes.native import Processor
from quantmill.qkernels.lanes.simd import (
    F32,
    I8,
    I16,
    I32,
    I64,
    LaneBuilder,
    any_of,
    from_brain,
    from_half,
    function,
    load_run,
    local,
    loop,
    prefetch,
    repeated,
    store_run,
    to_brain,
    to_half,
)

_WORDS = {"F32": I32, "F16": I16, "BF16": I16}
# Bytes between what is read and what is asked for: the processor itself stops where a page ends.
_AHEAD = 4096
_LINE = 64
# The bits of the largest finite number of each type.
_LARGEST = {"F32": 0x7F7FFFFF, "F16": 0x7BFF, "BF16": 0x7F7F}


def text_of(processor: Processor) -> str:
    """The module of all pairs."""
    module = ir.Module("quantmill")
    for source in _WORDS:
        for target in _WORDS:
            _conversion(module, source, target, processor)
    return str(module)


def _conversion(module: ir.Module, source: str, target: str, processor: Processor) -> None:
    kinds = [_WORDS[source], _WORDS[target]]
    b, (given, result, begin, end) = function(module, f"{source}_to_{target}", processor, kinds, 2)
    width = I64(b.width)
    whole = b.sub(end, b.srem(b.sub(end, begin), width))
    beyond = [_walked(b, source, target, given, result, begin, whole, b.width)]
    beyond.append(_walked(b, source, target, given, result, whole, end, 1))
    b.ret(b.zext(b.or_(*beyond), I32))


def _walked(
    b: LaneBuilder,
    source: str,
    target: str,
    given: ir.Value,
    result: ir.Value,
    begin: ir.Value,
    end: ir.Value,
    count: int,
) -> ir.Value:
    """Numbers begin … end-1 are converted, `count` at a time. Whether one of the results is not finite."""
    ints, stored, written = (ir.VectorType(kind, count) for kind in (I32, _WORDS[source], _WORDS[target]))
    largest = local(b, ints)
    b.store(repeated(0, ints), largest)
    sign = 1 << (_WORDS[target].width - 1)
    with loop(b, begin, end, I64(count)) as place:
        for line in range(0, stored.element.width * count // 8, _LINE):
            prefetch(b, b.gep(b.bitcast(b.gep(given, [place]), I8.as_pointer()), [I64(_AHEAD + line)]))
        words = load_run(b, given, place, stored, 1)
        words = words if stored == ints else b.zext(words, ints)
        made = words if source == target else _narrowed(b, _widened(b, words, source), target)
        size = b.and_(made, repeated(sign - 1, ints))
        highest = b.load(largest)
        b.store(b.select(b.icmp_unsigned(">", size, highest), size, highest), largest)
        made = made if written == ints else b.trunc(made, written)
        store_run(b, made, result, place, 1)
    return any_of(b, b.icmp_unsigned(">", b.load(largest), repeated(_LARGEST[target], ints)))


def _widened(b: LaneBuilder, words: ir.Value, source: str) -> ir.Value:
    """The floats of words."""
    if source == "F32":
        return b.bitcast(words, ir.VectorType(F32, words.type.count))
    return (from_half if source == "F16" else from_brain)(b, words)


def _narrowed(b: LaneBuilder, numbers: ir.Value, target: str) -> ir.Value:
    """The words of floats, in the low bits of integers; nothing is said of the high ones."""
    if target == "F32":
        return b.bitcast(numbers, ir.VectorType(I32, numbers.type.count))
    return (to_half if target == "F16" else to_brain)(b, numbers)
