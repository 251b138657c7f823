"""Types with one signed scale, x ≈ scale·code: Q4_0 and Q5_0 with importance, Q3_K, Q6_K."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from quantmill.qkernels.lanes.encoder import Encoder, Phase, constants
from quantmill.qkernels.lanes.vocabulary import (
    any_,
    div,
    f2h,
    full,
    h2f,
    i2f,
    imax,
    imin,
    izeros,
    ld,
    ldb,
    nint,
    st,
    stb,
    where,
    zeros,
)
from quantmill.qkernels.programs.common import (
    block_sigma,
    importance_weights,
    row_weights,
    signed_extreme,
    truth,
)
from quantmill.qkernels.programs.layout import (
    pack_fifth_bits,
    pack_high_bits,
    pack_nibbles,
    pack_quarters,
    pack_scales_3bit_high,
    store_half,
)
from quantmill.qkernels.programs.scale_search import (
    descent_search,
    plain_scale_search,
    scale_search,
    searched_codes,
    searched_level,
    signed_scale,
    weigh_products,
)


def requantize(j, X, SC, CODE, N, NMAX):
    """Final codes of sub-block j from the stored scale; where it is zero the search's own codes stay."""
    d = ld(SC, j)
    dead = d == 0.0
    for i in range(N):
        code = imin(imax(nint(div(ld(X, j * N + i), d)), -NMAX), NMAX - 1) + NMAX
        if any_(dead):
            code = where(dead, ldb(CODE, j * N + i), code)
        stb(CODE, j * N + i, code)


def searched_scales_q3_k(j, SCALE, TOTAL, WX, LADDER, SC, BITS, OUT):
    """Q3_K with importance: the sixteen scales searched like weights, 64 levels."""
    weigh_products(SCALE, 0, TOTAL, 0, WX, 16)
    d, inverse, live = signed_scale(SCALE, 0, TOTAL, 0, WX, LADDER, 16, 32)
    h = f2h(d)
    store_half(OUT, 108, h)
    step = h2f(h)
    for k in range(16):
        code = searched_level(ld(SCALE, k), inverse, live, 32)
        st(BITS, k, code)
        st(SC, k, step * i2f(code - 32))
    pack_scales_3bit_high(BITS, OUT, 96)


def plain_scales_q3_k(j, SCALE, SC, BITS, OUT):
    """Q3_K without importance: scales rounded against the largest."""
    _, extreme = signed_extreme(SCALE, 0, 16)
    some = truth(extreme)
    inverse = div(full(extreme, -32.0), extreme)
    d = where(some, div(full(extreme, 1.0), inverse), zeros(extreme))
    h = f2h(d)
    store_half(OUT, 108, h)
    step = h2f(h)
    for k in range(16):
        n = nint(inverse * ld(SCALE, k)) & 255
        n = where(n > 127, n - 256, n)
        code = where(some, imin(imax(n, -32), 31) + 32, izeros(n))
        st(BITS, k, code)
        st(SC, k, step * i2f(code - 32))
    pack_scales_3bit_high(BITS, OUT, 96)


def pack_q3_k(j, CODE, OUT):
    pack_high_bits(CODE, OUT, 0, 2)
    pack_quarters(CODE, OUT, 32)


def scales_q6_k(j, SCALE, SC, ALIVE, OUT):
    """Sixteen signed bytes against the largest scale; a super-block without one is all zero bytes."""
    largest, extreme = signed_extreme(SCALE, 0, 16)
    alive = largest >= 1e-15
    inverse = div(full(extreme, -128.0), extreme)
    h = f2h(div(full(extreme, 1.0), inverse))
    h = where(alive, h, izeros(h))
    st(ALIVE, 0, where(alive, izeros(h) + 1, izeros(h)))
    store_half(OUT, 208, h)
    d = h2f(h)
    for k in range(16):
        n = imin(nint(inverse * ld(SCALE, k)), 127) & 255
        n = where(alive, n, izeros(n))
        stb(OUT, 192 + k, n)
        st(SC, k, d * i2f(where(n > 127, n - 256, n)))


def pack_q6_k(j, CODE, ALIVE, OUT):
    """ql[128] low four bits, qh[64] high two bits of codes 0 … 63."""
    alive = ld(ALIVE, 0) > 0
    for h in range(2):
        for m in range(32):
            c0 = where(alive, ldb(CODE, 128 * h + m), 0)
            c1 = where(alive, ldb(CODE, 128 * h + 32 + m), 0)
            c2 = where(alive, ldb(CODE, 128 * h + 64 + m), 0)
            c3 = where(alive, ldb(CODE, 128 * h + 96 + m), 0)
            stb(OUT, 64 * h + m, (c0 & 15) | ((c2 & 15) << 4))
            stb(OUT, 64 * h + 32 + m, (c1 & 15) | ((c3 & 15) << 4))
            stb(OUT, 128 + 32 * h + m, (c0 >> 4) | ((c1 >> 4) << 2) | ((c2 >> 4) << 4) | ((c3 >> 4) << 6))


def pack_scale(j, SCALE, CODE, OUT, FIFTH):
    """Q4_0: d, nibbles. Q5_0: d, the fifth bits, nibbles."""
    store_half(OUT, 0, f2h(ld(SCALE, 0)))
    if FIFTH:
        pack_fifth_bits(CODE, OUT, 2)
        pack_nibbles(CODE, 0, OUT, 6, 16)
    else:
        pack_nibbles(CODE, 0, OUT, 2, 16)


def _ladder(levels: int) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        t = np.array([t for t in range(-9, 10) if t], np.float32)
        return -np.append(np.float32(levels), np.float32(levels) + np.float32(0.1) * t).astype(np.float32)

    return make


def _search(weights: str, n: int, levels: int, subs: int) -> Phase:
    bound: dict[str, str | int] = {"W": weights, "LADDER": "trials", "N": n, "NMAX": levels}
    return Phase(scale_search, bound, subs)


def _of_32(levels: int, fifth: int) -> Encoder:
    return Encoder(
        family="scale",
        scratch={
            "weight": (32, "f32"),
            "wx": (32, "f32"),
            "scale": (1, "f32"),
            "inverse": (1, "f32"),
            "live": (1, "i32"),
            "code": (32, "u8"),
        },
        tables={"trials": _ladder(levels)},
        uses_importance=True,
        uses_row_sigma=True,
        phases=(
            Phase(row_weights, {"N": 32}),
            _search("weight", 32, levels, 1),
            Phase(searched_codes, {"N": 32, "NMAX": levels}),
            Phase(pack_scale, {"FIFTH": fifth}),
        ),
    )


_SCRATCH = {
    "sigma": (1, "f32"),
    "weight": (256, "f32"),
    "w": (32, "f32"),
    "wx": (32, "f32"),
    "level": (32, "f32"),
    "scale": (16, "f32"),
    "inverse": (16, "f32"),
    "live": (16, "i32"),
    "total": (16, "f32"),
    "sc": (16, "f32"),
    "bits": (16, "i32"),
    "alive": (1, "i32"),
    "code": (256, "u8"),
}


def _of_256(levels: int, weighted: bool, before: tuple[Phase, ...], after: tuple[Phase, ...]) -> Encoder:
    return Encoder(
        family="scale",
        scratch=_SCRATCH,
        private=frozenset({"w", "wx", "level"}),
        tables={"trials": _ladder(levels), "ladder": _ladder(32), "factor": constants(2 / 256)},
        uses_importance=weighted,
        phases=(*before, after[0], Phase(requantize, {"N": 16, "NMAX": levels}, 16), *after[1:]),
    )


_CODES_3 = Phase(searched_codes, {"N": 16, "NMAX": 4}, 16)


_CODES_6 = Phase(searched_codes, {"N": 16, "NMAX": 32}, 16)


_AFTER_6 = (
    Phase(scales_q6_k),
    Phase(pack_q6_k),
)


ENCODERS = {
    ("Q4_0", True): _of_32(8, 0),
    ("Q5_0", True): _of_32(16, 1),
    ("Q3_K", False): _of_256(
        4,
        False,
        (Phase(descent_search, {"WEIGHT": "w", "N": 16, "NMAX": 4}, 8),),
        (Phase(plain_scales_q3_k), Phase(pack_q3_k)),
    ),
    ("Q3_K", True): _of_256(
        4,
        True,
        (
            Phase(block_sigma, {"N": 256}),
            Phase(importance_weights, {"N": 16}, 16),
            _search("weight", 16, 4, 16),
            _CODES_3,
        ),
        (
            Phase(searched_scales_q3_k),
            Phase(pack_q3_k),
        ),
    ),
    ("Q6_K", False): _of_256(
        32,
        False,
        (Phase(plain_scale_search, {"LADDER": "trials", "N": 16, "NMAX": 32}, 16), _CODES_6),
        _AFTER_6,
    ),
    ("Q6_K", True): _of_256(
        32,
        True,
        (_search("importance", 16, 32, 16), _CODES_6),
        _AFTER_6,
    ),
}
