"""Causal attention by short products, as LLVM IR: each token sees itself and those before it.

    i32 attend(q, k, turned_v, out, factor, k_codes, k_scales, v_codes, v_scales, codes, scales, scores, inverses,
               n_heads, n_shared, n_tokens, width, q_apart, q_head, k_apart, k_head, out_apart, out_head)

q and out f32, `width` numbers of a token, `…_apart` from token to token and `…_head` from head to head; k and turned_v
(f32 [heads, width, n_tokens]) have a head for n_shared of q's. The rest is memory: for codes, as
cpu_product_driver or cpu_tile_driver has them, of QUERIES tokens at a time, and for their scores. factor: what scores
are multiplied with, f32 [1]. Tokens and width are whole blocks.
"""

from __future__ import annotations

import llvmlite.ir as ir

from quantmill.qkernels.lanes.cpu_likelihood_driver import exp
from quantmill.qkernels.lanes.cpu_product_kinds import MAKERS
from quantmill.qkernels.lanes.cpu_product_shape import BLOCK, INT16, LANES, QUERIES
from quantmill.qkernels.lanes.native import Processor
from quantmill.qkernels.lanes.simd import (
    F32,
    I16,
    I32,
    I64,
    LaneBuilder,
    call,
    function,
    load_run,
    local,
    loop,
    repeated,
    splat,
    store_run,
)

_FLOATS, _INTS = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
_LOWEST = float("-inf")


def text_of(kind: str, processor: Processor) -> str:
    """The module of attend and what it calls, for one kind of products."""
    module, makers = ir.Module("quantmill"), MAKERS[kind]
    entered, packed, multiplied = (
        make(module, processor) for make in (makers.enter, makers.pack, makers.multiply)
    )
    b, given = function(module, "attend", processor, (*[F32] * 5, *[I16, F32] * 3, F32, F32), 10)
    q, k, turned, out, factor, k_codes, k_scales, v_codes, v_scales, codes, scales, scores, inverses = given[
        :13
    ]
    n_heads, n_shared, n_tokens, width, q_apart, q_head, k_apart, k_head, out_apart, out_head = given[13:]
    blocks, token_blocks = b.sdiv(width, I64(BLOCK)), b.sdiv(n_tokens, I64(BLOCK))
    with loop(b, I64(0), n_heads) as head:
        with b.if_then(b.icmp_signed("==", b.srem(head, n_shared), I64(0))):
            kv = b.sdiv(head, n_shared)
            keys = b.gep(k, [b.mul(kv, k_head)])
            b.call(packed, [keys, k_codes, k_scales, width, I64(0), n_tokens, k_apart])
            values = b.gep(turned, [b.mul(kv, b.mul(width, n_tokens))])
            b.call(packed, [values, v_codes, v_scales, n_tokens, I64(0), width, n_tokens])
        with loop(b, I64(0), n_tokens, I64(QUERIES)) as first:
            left = b.sub(n_tokens, first)
            n = b.select(b.icmp_signed("<", left, I64(QUERIES)), left, I64(QUERIES))
            end = b.add(first, n)
            queries = b.gep(q, [b.add(b.mul(head, q_head), b.mul(first, q_apart))])
            b.call(entered, [queries, codes, scales, n, width, q_apart])
            b.call(
                multiplied,
                [codes, scales, k_codes, k_scales, scores, n, blocks, blocks, end, n_tokens],
            )
            with loop(b, I64(0), n) as row:
                line = b.gep(scores, [b.mul(row, n_tokens)])
                seen = b.add(b.add(first, row), I64(1))
                b.store(_softmax(b, line, seen, end, b.load(factor)), b.gep(inverses, [row]))
            b.call(entered, [scores, codes, scales, n, end, n_tokens])
            if kind == INT16:
                _divide(b, scales, inverses, n, b.sdiv(end, I64(BLOCK)))
            place = b.gep(out, [b.add(b.mul(head, out_head), b.mul(first, out_apart))])
            shares = [codes, scales, v_codes, v_scales, place, n, b.sdiv(end, I64(BLOCK)), token_blocks]
            b.call(multiplied, [*shares, width, out_apart])
            if kind != INT16:
                _divide_rows(b, place, inverses, n, width, out_apart)
    b.ret(I32(0))
    return str(module)


def _softmax(b: LaneBuilder, line: ir.Value, seen: ir.Value, end: ir.Value, factor: ir.Value) -> ir.Value:
    """The first `seen` scores of a line become e^(factor · (x - largest)), those up to `end` 0; 1 / their sum."""
    largest, total = local(b, _FLOATS), local(b, _FLOATS)
    b.store(repeated(_LOWEST, _FLOATS), largest)
    b.store(repeated(0.0, _FLOATS), total)
    lanes, zero = ir.Constant(_INTS, list(range(LANES))), repeated(0.0, _FLOATS)

    def mask(column: ir.Value) -> ir.Value:
        left = splat(b, b.trunc(b.sub(seen, column), I32), LANES)
        return b.icmp_signed("<", lanes, left)

    with loop(b, I64(0), seen, I64(LANES)) as column:
        run = b.select(mask(column), load_run(b, line, column, _FLOATS, 4), repeated(_LOWEST, _FLOATS))
        b.store(b.select(b.fcmp_ordered(">", run, b.load(largest)), run, b.load(largest)), largest)
    top = splat(b, call(b, f"llvm.vector.reduce.fmax.v{LANES}f32", F32, b.load(largest)), LANES)
    factors = splat(b, factor, LANES)
    with loop(b, I64(0), end, I64(LANES)) as column:
        x = b.fmul(b.fsub(load_run(b, line, column, _FLOATS, 4), top), factors)
        # exp makes numbers of what is none
        share = b.select(b.fcmp_unordered("uno", x, x), x, exp(b, x))
        share = b.select(mask(column), share, zero)
        store_run(b, share, line, column, 4)
        b.store(b.fadd(b.load(total), share), total)
    whole = call(b, f"llvm.vector.reduce.fadd.v{LANES}f32", F32, F32(0.0), b.load(total))
    return b.fdiv(F32(1.0), whole)


def _divide(b: LaneBuilder, scales: ir.Value, inverses: ir.Value, n: ir.Value, n_blocks: ir.Value) -> None:
    with loop(b, I64(0), n) as row:
        inverse = b.load(b.gep(inverses, [row]))
        with loop(b, I64(0), n_blocks) as block:
            place = b.gep(scales, [b.add(b.mul(row, n_blocks), block)])
            b.store(b.fmul(b.load(place), inverse), place)


def _divide_rows(
    b: LaneBuilder, rows: ir.Value, inverses: ir.Value, n: ir.Value, width: ir.Value, apart: ir.Value
) -> None:
    with loop(b, I64(0), n) as row:
        inverse = splat(b, b.load(b.gep(inverses, [row])), LANES)
        with loop(b, I64(0), width, I64(LANES)) as column:
            place = b.add(b.mul(row, apart), column)
            store_run(b, b.fmul(load_run(b, rows, place, _FLOATS, 4), inverse), rows, place, 4)
