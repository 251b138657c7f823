"""Numbers as checkpoints store them, as float32: bfloat16, eight-bit floats, powers of two, four-bit floats, bits."""

from __future__ import annotations

import numpy as np


def to_float32(values: np.ndarray, type: str) -> np.ndarray:
    """float32 of F32, F16, F64 numbers, of BF16 bits, of E8M0 exponents or eight-bit floats."""
    if type == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    if type == "F8_E8M0":  # a power of two; 255 is NaN
        return POWERS[values]
    if type in FP8_VALUES:
        return FP8_VALUES[type][values]
    return values.astype(np.float32, copy=False)


def pairs(bytes: np.ndarray) -> np.ndarray:
    """u8 [..., n] → [..., 2n]: the low four bits of each byte, then its high ones."""
    return np.stack((bytes & 15, bytes >> 4), axis=-1).reshape(*bytes.shape[:-1], -1)


def halves(codes: np.ndarray, size: int) -> np.ndarray:
    """Codes below 16, u8 [..., n], → [..., n / 2] as ggml packs blocks of `size`: byte j has code j low, and of the
    second half of the block code j high."""
    blocks = codes.reshape(*codes.shape[:-1], -1, 2, size // 2)
    return (blocks[..., 0, :] | blocks[..., 1, :] << 4).reshape(*codes.shape[:-1], -1)


def unpacked(words: np.ndarray, bits: int, n: int, straddling: bool) -> np.ndarray:
    """i32 [rows, words] → u8 [rows, n], codes of `bits` bits from the lowest on.

    straddling: the bits of all words follow one another; else a word holds 32 // bits whole codes.
    """
    words = np.ascontiguousarray(words)
    if bits == 8:
        return words.view(np.uint8)[:, :n]
    if bits == 4:
        return pairs(words.view(np.uint8))[:, :n]
    first = (
        np.arange(n) * bits
        if straddling
        else np.arange(n) // (32 // bits) * 32 + np.arange(n) % (32 // bits) * bits
    )
    wide = np.concatenate((words.view(np.uint32), np.zeros((len(words), 1), np.uint32)), axis=1).astype(
        np.uint64
    )
    both = wide[:, first // 32] | wide[:, first // 32 + 1] << np.uint64(32)
    return (both >> (first % 32).astype(np.uint64) & np.uint64((1 << bits) - 1)).astype(np.uint8)


def n_words(n: int, bits: int, straddling: bool) -> int:
    """How many 32-bit words `unpacked` needs for n codes."""
    return -(-n * bits // 32) if straddling else -(-n // (32 // bits))


def fits_half(values: np.ndarray) -> bool:
    """Whether every one of these float32 is a binary16 exactly, and finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values).all() and (values.astype(np.float16) == values).all())


def _e4m3() -> np.ndarray:
    """float32 [256], without infinities (OCP 8-bit floating point specification)."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    magnitude = np.where(exponent, (1 + mantissa / 8) * 2.0 ** (exponent - 7), mantissa / 8 * 2.0**-6)
    magnitude[(codes & 127) == 127] = np.nan
    return np.where(codes & 128, -magnitude, magnitude).astype(np.float32)


# E5M2 is the upper byte of a float16.
FP8_VALUES = {
    "F8_E4M3": _e4m3(),
    "F8_E5M2": (np.arange(256).astype(np.uint16) << 8).view(np.float16).astype(np.float32),
}
# 2^(e - 127); the smallest is a sub-normal number.
POWERS = np.append(np.exp2(np.arange(255, dtype=np.float64) - 127), np.nan).astype(np.float32)
_MAGNITUDES = np.array((0, 0.5, 1, 1.5, 2, 3, 4, 6), np.float32)
FP4_VALUES = np.concatenate((_MAGNITUDES, -_MAGNITUDES))
