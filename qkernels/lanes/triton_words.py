"""The lane language as Triton functions: one lane a thread.

An array is a tuple (pointer to the thread's first element, distance between elements, which threads are live); a table
is a pointer. Every operation is one IEEE operation: `div_rn` and `sqrt_rn` instead of Triton's approximate `/` and
`sqrt`, and every kernel is compiled with `enable_fp_fusion=False`.
"""

import triton
import triton.language as tl


@triton.jit
def ld(A, i):
    return tl.load(A[0] + i * A[1], mask=A[2], other=0)


@triton.jit
def st(A, i, v):
    tl.store(A[0] + i * A[1], v, mask=A[2])


@triton.jit
def ldb(A, i):
    return tl.load(A[0] + i * A[1], mask=A[2], other=0).to(tl.int32)


@triton.jit
def stb(A, i, v):
    tl.store(A[0] + i * A[1], (v & 255).to(tl.uint8), mask=A[2])


@triton.jit
def cst(T, i):
    return tl.load(T + i)


@triton.jit
def take(T, v):
    return tl.load(T + v)


@triton.jit
def pick(T, first, v):
    return tl.load(T + first + (v & 31))


@triton.jit
def zeros(v):
    return tl.full(v.shape, 0.0, tl.float32)


@triton.jit
def izeros(v):
    return tl.full(v.shape, 0, tl.int32)


@triton.jit
def full(v, c):
    return tl.full(v.shape, c, tl.float32)


@triton.jit
def number(v, j):
    return j


@triton.jit
def where(m, a, b):
    return tl.where(m, a, b)


@triton.jit
def div(a, b):
    return tl.div_rn(a, b)


@triton.jit
def sqrt(v):
    return tl.sqrt_rn(v)


@triton.jit
def fabs(v):
    return tl.abs(v)


@triton.jit
def neg(v):
    return v * -1.0


@triton.jit
def nint(v):
    # a GPU's own NaN is 0x7fffffff: of its bits the trick would make a large number, of a processor's 0
    return tl.where(v == v, ((v + 12582912.0).to(tl.int32, bitcast=True) & 0x7FFFFF) - 0x400000, 0)


@triton.jit
def nhalf(v):
    return tl.where(v == v, ((v + 25165824.0).to(tl.int32, bitcast=True) & 0x7FFFFF) - 0x400000, 0)


@triton.jit
def lev(v, LOW, HIGH):
    return tl.minimum(tl.maximum(nint(v), LOW), HIGH).to(tl.float32)


@triton.jit
def rnear(v):
    return (v + 12582912.0) - 12582912.0


@triton.jit
def trunc(v):
    fits = tl.abs(v) < 2147483648.0
    return tl.where(fits, tl.where(fits, v, 0.0).to(tl.int32), -2147483648)


@triton.jit
def i2f(v):
    return v.to(tl.float32)


@triton.jit
def f2h(v):
    return v.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF


@triton.jit
def h2f(v):
    return v.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def bits(v):
    return v.to(tl.int32, bitcast=True)


@triton.jit
def from_bits(v):
    return v.to(tl.float32, bitcast=True)


@triton.jit
def imin(a, b):
    return tl.minimum(a, b)


@triton.jit
def imax(a, b):
    return tl.maximum(a, b)


@triton.jit
def any_(m):
    # a vote would need a barrier; working on lanes that are done changes nothing
    return True


@triton.jit
def put(A, i, v):
    pass


@triton.jit
def get(A, i, v):
    return v


@triton.jit
def _group(A, place, DIM: tl.constexpr):
    a, b, c, d = ld(A, place), ld(A, place + 1), ld(A, place + 2), ld(A, place + 3)
    if DIM == 4:
        return (a, b, c, d)
    else:
        return (a, b, c, d, ld(A, place + 4), ld(A, place + 5), ld(A, place + 6), ld(A, place + 7))


@triton.jit
def _walk(
    u, V, WEIGHT, place, scale, low, LISTS, NEAR, DIM: tl.constexpr, BITS: tl.constexpr, SHIFTED: tl.constexpr
):
    """A thread walks its own list; all threads of the program wait for the longest."""
    listed = tl.load(LISTS + u)
    start = (listed >> 10) * 16
    count = listed & 1023
    v = _group(V, place, DIM)
    w = _group(WEIGHT, place, DIM)
    best = tl.full(scale.shape, 3.4028234663852886e38, tl.float32)
    found = u
    for n in range(tl.max(count, 0)):
        code = tl.load(NEAR + start + n, mask=n < count, other=0)
        distance = tl.full(scale.shape, 0.0, tl.float32)
        for k in tl.static_range(DIM):
            digit = (code >> (BITS * k)) & ((1 << BITS) - 1)
            if SHIFTED:
                d = scale * (digit.to(tl.float32) + low) - v[k]
            else:
                d = scale * (digit * 2 + 1).to(tl.float32) - v[k]
            distance = distance + w[k] * d * d
        nearer = (n < count) & (distance < best)
        best = tl.where(nearer, distance, best)
        found = tl.where(nearer, code, found)
    return found


@triton.jit
def nearest(u, V, ROOT, place, scale, LISTS, NEAR, DIM, BITS):
    return _walk(u, V, ROOT, place, scale, scale, LISTS, NEAR, DIM, BITS, False)


@triton.jit
def nearest_shifted(u, V, WEIGHT, place, scale, low, LISTS, NEAR, NOTES):
    return _walk(u, V, WEIGHT, place, scale, low, LISTS, NEAR, 8, 2, True)


WORDS = {
    word.fn.__name__: word
    for word in (
        *(ld, st, ldb, stb, cst, take, pick, zeros, izeros, full, number, where),
        *(div, sqrt, fabs, neg, nint, nhalf, lev, rnear, trunc, i2f, f2h, h2f, bits, from_bits),
        *(imin, imax, any_, put, get, nearest, nearest_shifted),
    )
}
