"""What the thorough searches share.

They go on where the default's search ends: they read the scales that it left in the block, of which the nearest codes
are the first candidate, and take another only where Σ h·(x - q)² is smaller, h being the importance of a column, or 1.
So no block comes out worse. Scales are tried as they are stored, rounded to halves and whole numbers, and of given
scales the nearest codes are the best, so a candidate is its scales, and codes are made at the end.
"""

from __future__ import annotations

import numpy as np

from quantmill.qkernels.lanes.encoder import Phase
from quantmill.qkernels.lanes.vocabulary import cst, div, full, ld, lev, nint, pick, st, stb, where, zeros
from quantmill.qkernels.programs.codebook import cell
from quantmill.qkernels.programs.rounding import inverse_or_zero


def equal_importance(j, H, N):
    """Without importance all weights count alike."""
    for i in range(N):
        st(H, i, full(ld(H, i), 1.0))


def nearest_level(v, CELLS, LOW, HIGH):
    """The level nearest to v: of the whole numbers LOW … HIGH, or of a codebook's values where both are 0."""
    if LOW < HIGH:
        level = lev(v, LOW, HIGH)
    else:
        c = cell(v)
        level = where(v < pick(CELLS, 0, c), pick(CELLS, 32, c), pick(CELLS, 64, c))
    return level


def fit(X, H, first, scale, inverse, CELLS, N, LOW, HIGH):
    """Σ h·(scale·q - x)², Σ h·x·q and Σ h·q² over N weights, q the level nearest to inverse·x."""
    error = zeros(scale)
    sxq = error
    sqq = error
    for i in range(N):
        x = ld(X, first + i)
        h = ld(H, first + i)
        q = nearest_level(inverse * x, CELLS, LOW, HIGH)
        d = scale * q - x
        hq = h * q
        error = error + h * (d * d)
        sxq = sxq + hq * x
        sqq = sqq + hq * q
    return error, sxq, sqq


def widest(X, H, first, extreme, NUMERATORS, start, CELLS, N, LOW, HIGH, TRIALS):
    """Of the steps that TRIALS numerators give, the scale that fits its codes best, not rounded."""
    top = zeros(extreme)
    scale = top
    for t in range(TRIALS):
        inverse = div(full(extreme, cst(NUMERATORS, start + t)), extreme)
        _, sxq, sqq = fit(X, H, first, extreme, inverse, CELLS, N, LOW, HIGH)
        candidate = div(sxq, sqq)
        up = (sqq > 0.0) & (sxq * sxq > top * sqq)
        scale = where(up, candidate, scale)
        top = where(up, candidate * sxq, top)
    return scale


def level_codes(j, X, D, SCALES, CODE, N, LOW, HIGH):
    """Codes 0 … HIGH - LOW of sub-block j, whose scale is d times a whole number."""
    inverse = inverse_or_zero(ld(D, 0) * ld(SCALES, j))
    for i in range(N):
        stb(CODE, j * N + i, nint(lev(inverse * ld(X, j * N + i), LOW, HIGH)) - LOW)


def inverse_steps(j, D, SCALES, INVERSE):
    """What codebook_codes needs of sub-block j."""
    st(INVERSE, j, inverse_or_zero(ld(D, 0) * ld(SCALES, j)))


def importance(weighted: bool) -> str:
    """The array that phases take as H."""
    return "importance" if weighted else "h"


def spaced(first: float, last: float, count: int, levels: float) -> list[float]:
    """`count` multiples of `levels` in geometric progression: numerators of steps over the largest weight.

    Beyond 1 the largest weights are cut off, which pays where the importance of others is far greater.
    """
    return (levels * np.geomspace(first, last, count)).tolist()


def begun(weighted: bool, block: int) -> tuple[Phase, ...]:
    """What comes before the first phase that takes H."""
    return () if weighted else (Phase(equal_importance, {"N": block}),)


def scratch_of(weighted: bool, block: int) -> dict[str, tuple[int, str]]:
    """The array H, where it is not the importance."""
    return {} if weighted else {"h": (block, "f32")}
