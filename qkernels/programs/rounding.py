"""Types that round against the largest weight or the range, without a search: Q8_0; Q4_0 … Q5_1 without importance."""

from __future__ import annotations

from collections.abc import Callable

from quantmill.qkernels.lanes.encoder import Encoder, Phase
from quantmill.qkernels.lanes.vocabulary import (
    div,
    f2h,
    fabs,
    full,
    i2f,
    imin,
    ld,
    stb,
    trunc,
    where,
    zeros,
)
from quantmill.qkernels.programs.common import signed_extreme, truth
from quantmill.qkernels.programs.layout import pack_fifth_bits, pack_nibbles, store_half


def round_away(v):
    """C's roundf to an integer: half away from zero; what does not fit becomes -2^31, as on x86."""
    n = trunc(v)
    rest = where(fabs(v) < 4194304.0, v - i2f(n), zeros(v))
    return n + where(rest >= 0.5, 1, 0) - where(rest <= -0.5, 1, 0)


def inverse_or_zero(d):
    return where(truth(d), div(full(d, 1.0), d), zeros(d))


def encode_q8_0(j, X, OUT):
    top = zeros(ld(X, 0))
    for i in range(32):
        a = fabs(ld(X, i))
        top = where(top > a, top, a)
    d = div(top, full(top, 127.0))
    inverse = inverse_or_zero(d)
    store_half(OUT, 0, f2h(d))
    for i in range(32):
        stb(OUT, 2 + i, round_away(ld(X, i) * inverse))


def signed_codes(j, X, CODE, OUT, LEVELS):
    """x ≈ d·(code - LEVELS/2), the extreme weight at code 0."""
    _, extreme = signed_extreme(X, 0, 32)
    d = div(extreme, full(extreme, -(LEVELS // 2)))
    inverse = inverse_or_zero(d)
    store_half(OUT, 0, f2h(d))
    half = full(d, LEVELS // 2) + 0.5
    for i in range(32):
        stb(CODE, i, imin(trunc(ld(X, i) * inverse + half) & 255, LEVELS - 1))


def ranged_codes(j, X, CODE, OUT, LEVELS):
    """x ≈ d·code + m, the smallest weight (the first of equals) at code 0."""
    low = ld(X, 0)
    high = low
    for i in range(1, 32):
        x = ld(X, i)
        low = where(x < low, x, low)
        high = where(x > high, x, high)
    d = div(high - low, full(low, LEVELS - 1))
    inverse = inverse_or_zero(d)
    store_half(OUT, 0, f2h(d))
    store_half(OUT, 2, f2h(low))
    for i in range(32):
        stb(CODE, i, imin(trunc((ld(X, i) - low) * inverse + 0.5) & 255, LEVELS - 1))


def pack_codes_4(j, CODE, OUT, PLACE):
    pack_nibbles(CODE, 0, OUT, PLACE, 16)


def pack_codes_5(j, CODE, OUT, PLACE):
    pack_fifth_bits(CODE, OUT, PLACE)
    pack_nibbles(CODE, 0, OUT, PLACE + 4, 16)


def _encoder(codes: Callable[..., None], levels: int, pack: Callable[..., None], place: int) -> Encoder:
    return Encoder(
        family="rounding",
        scratch={"code": (32, "u8")},
        phases=(Phase(codes, {"LEVELS": levels}), Phase(pack, {"PLACE": place})),
    )


ENCODERS = {
    ("Q8_0", False): Encoder(family="rounding", phases=(Phase(encode_q8_0),)),
    ("Q4_0", False): _encoder(signed_codes, 16, pack_codes_4, 2),
    ("Q4_1", False): _encoder(ranged_codes, 16, pack_codes_4, 4),
    ("Q5_0", False): _encoder(signed_codes, 32, pack_codes_5, 2),
    ("Q5_1", False): _encoder(ranged_codes, 32, pack_codes_5, 4),
}
