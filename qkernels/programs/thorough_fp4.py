"""Thorough searches of MXFP4 and NVFP4: other scales near the default's, on their own coarse grids."""

from __future__ import annotations

from quantmill.qkernels.lanes.encoder import Encoder, Phase, continued
from quantmill.qkernels.lanes.vocabulary import cst, fabs, imax, imin, ld, ldb, stb, where, zeros
from quantmill.qkernels.programs.fp4 import ENCODERS as FP4
from quantmill.qkernels.programs.fp4 import e8m0_scale, pack_fp4, ue4m3_scale
from quantmill.qkernels.programs.thorough import begun, importance, scratch_of


def fp4_error(X, H, first, scale, LEVELS, N):
    """Σ h·e² with e the distance to the nearest level, as pack_fp4 finds it."""
    error = zeros(scale)
    for i in range(N):
        a = fabs(ld(X, first + i))
        least = a
        for k in range(1, 8):
            distance = fabs(scale * cst(LEVELS, k) - a)
            least = where(distance < least, distance, least)
        error = error + ld(H, first + i) * (least * least)
    return error


def scale_byte(X, H, first, byte, LEVELS, N, LAST, MINI, DOWN, TRIALS):
    """The byte, or one of TRIALS others from DOWN below it, whose scale loses least. MINI: E4M3, else E8M0."""
    best_byte = byte
    best = fp4_error(X, H, first, ue4m3_scale(byte) if MINI else e8m0_scale(byte), LEVELS, N)
    for t in range(TRIALS):
        trial = imin(imax(byte + (t - DOWN), 0), LAST)
        error = fp4_error(X, H, first, ue4m3_scale(trial) if MINI else e8m0_scale(trial), LEVELS, N)
        up = error < best
        best = where(up, error, best)
        best_byte = where(up, trial, best_byte)
    return best_byte


def thorough_mxfp4(j, X, H, LEVELS, OUT, DOWN, TRIALS):
    e = scale_byte(X, H, 0, ldb(OUT, 0), LEVELS, 32, 254, 0, DOWN, TRIALS)
    stb(OUT, 0, e)
    pack_fp4(X, 0, e8m0_scale(e), LEVELS, OUT, 1, 16)


def thorough_nvfp4(j, X, H, LEVELS, OUT, DOWN, TRIALS):
    u = scale_byte(X, H, 16 * j, ldb(OUT, j), LEVELS, 16, 126, 1, DOWN, TRIALS)
    stb(OUT, j, u)
    pack_fp4(X, 16 * j, ue4m3_scale(u), LEVELS, OUT, 4 + 8 * j, 8)


def _encoder(type: str, block: int, weighted: bool, search: Phase) -> Encoder:
    phases = (*begun(weighted, block), search)
    return continued(FP4[type, False], "thorough_fp4", phases, scratch_of(weighted, block), {}, weighted)


ENCODERS = {
    (type, weighted): _encoder(
        type, block, weighted, Phase(program, {"H": importance(weighted), **tried}, lanes)
    )
    for type, block, program, tried, lanes in (
        ("MXFP4", 32, thorough_mxfp4, {"DOWN": 3, "TRIALS": 5}, 1),
        ("NVFP4", 64, thorough_nvfp4, {"DOWN": 12, "TRIALS": 21}, 4),
    )
    for weighted in (False, True)
}
