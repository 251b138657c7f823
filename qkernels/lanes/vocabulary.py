"""The words of the lane language, declared for readers and type checkers.

A lane program is straight-line Python over these names. A *lane* is one sub-block, super-block or row; a lane value
is one float (f32), integer (i32) or truth value for every lane. Arrays are laid out `[element][lane]`: `ld(X, i)` is
element i of every lane. Reductions are sequential loops in the order of the reference, each `+ - *` is one rounded
binary32 operation, and every engine (LLVM, Triton, torch) gives the same bits.

The loader (`qkernels/lanes/loader.py`) executes a program's source with these names bound to one engine's words, so
nothing here ever runs. Integer parameters in capitals are constants known when a kernel is compiled. `any_` may only
guard work that would not change a lane for which its condition is false: an engine may always answer yes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NoReturn

_NEVER = "lane programs run through qkernels.lanes.loader, not by themselves"


def _declared(*operands: Any) -> NoReturn:
    raise NotImplementedError(_NEVER)


ld: Any = _declared  # ld(A, i): element i of a float or integer array
st: Any = _declared  # st(A, i, v): store element i
ldb: Any = _declared  # ldb(B, i): byte i as an integer 0..255
stb: Any = _declared  # stb(B, i, v): store the low 8 bits of an integer as byte i
cst: Any = _declared  # cst(T, i): entry i of a table, the same for all lanes
take: Any = _declared  # take(T, v): for each lane the table entry that its integer names
pick: Any = _declared  # pick(T, first, v): take(T, first + (v & 31)): a part of 32 entries fits in registers
zeros: Any = _declared  # zeros(v): +0.0 in every lane
izeros: Any = _declared  # izeros(v): integer 0 in every lane
full: Any = _declared  # full(v, c): the float c in every lane
where: Any = _declared  # where(m, a, b): a where m holds, else b
div: Any = _declared  # div(a, b): correctly rounded quotient
sqrt: Any = _declared  # sqrt(v): correctly rounded root
fabs: Any = _declared  # fabs(v): magnitude
neg: Any = _declared  # neg(v): of the other sign, zeros too; `-v` is for constants, Triton made 0 - v of it before 3.8
nint: Any = _declared  # nint(v): ggml's nearest_int: half to even, of NaN 0; beyond 2^22 it wraps as the bit trick does
nhalf: Any = _declared  # nhalf(v): nint(0.5 v), by 1.5·2^24, whose neighbours are two apart
lev: Any = _declared  # lev(v, low, high): i2f of nint(v) limited to low … high; low and high are constants
rnear: Any = _declared  # rnear(v): the same as a float; only for |v| < 2^22
trunc: Any = _declared  # trunc(v): C's (int) as x86 does it: towards zero, -2^31 for what does not fit
i2f: Any = _declared  # i2f(v): integer to float
f2h: Any = _declared  # f2h(v): the 16 bits of the nearest half, as an integer
h2f: Any = _declared  # h2f(v): the float of 16 half bits
bits: Any = _declared  # bits(v): the 32 bits of a float as an integer
from_bits: Any = _declared  # from_bits(v): the float of 32 bits
imin: Any = _declared  # imin(a, b): smaller integer
imax: Any = _declared  # imax(a, b): larger integer
number: Any = _declared  # number(v, j): the number j of the lane in its block, as an integer
any_: Any = _declared  # any_(m): whether some lane holds
put: Any = _declared  # put(A, i, v): remember v for `get`; an engine may forget it
get: Any = _declared  # get(A, i, v): what was put, or v, which is the same value computed again


def nearest(u, V, ROOT, place, scale, LISTS, NEAR, DIM, BITS):
    """For each lane, the code of the codebook entry nearest to a group of DIM weights (`iq2_find_best_neighbour`).

    A code holds DIM digits of BITS bits, digit k at bits BITS·k. u: integers, the codes to start from.
    LISTS i32 [1 << BITS·DIM]: 0 for a code that is on the grid; otherwise (start / 16) << 10 | count: its neighbours
    are NEAR[start] … NEAR[start + count - 1], codes of entries, in the order of the reference. Up to the next
    multiple of 16 NEAR repeats the last of them, so reading whole runs of 16 finds the same.
    Result: u where it is on the grid; else the neighbour with the smallest
        D = ((ROOT_0·d_0)·d_0 + (ROOT_1·d_1)·d_1) + …,  d_k = scale·(2·digit_k + 1) - V_k,
    V_k and ROOT_k being elements place + k of their arrays; the first of equals wins. A result differs from u exactly
    where u is off the grid.
    """
    raise NotImplementedError(_NEVER)


def nearest_shifted(u, V, WEIGHT, place, scale, low, LISTS, NEAR, NOTES):
    """`nearest` for groups of 8 digits of 2 bits with d_k = scale·(digit_k + low) - V_k (`iq1_find_best_neighbour2`).

    low: of each lane, -1 plus or minus 1/8, so that digit + low is exact. NOTES: four integers a lane for the
    engine's own use.
    """
    raise NotImplementedError(_NEVER)


# The contract: a machine has exactly these words, and may have functions of programs in its own way beside them.
WORDS = frozenset(
    name for name, value in vars().items() if name[0] != "_" and getattr(value, "__module__", "") == __name__
)
# Those functions, and the words that are used in them alone, which such a machine need not have.
OWN_WAYS: Mapping[str, frozenset[str]] = MappingProxyType(
    {"snap": frozenset({"nearest"}), "forget": frozenset()}
)
