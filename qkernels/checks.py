"""What is checked before and after a search: columns, importance, weights and scales. numpy only."""

from __future__ import annotations

import numpy as np

from quantmill.qkernels.types import NotFiniteError, QuantizeError, QuantType, Search, TooLargeError

# The bytes of a scale, counted from its first, and their bits: where all are set it is NaN or infinite. Every byte of
# ue4m3 is a number: what would be NaN is read as zero. IQ1_M keeps its half in the high nibbles of four words.
_NOT_FINITE = {
    "f16": ((1, 0x7C),),
    "bf16": ((1, 0x7F), (0, 0x80)),
    "e8m0": ((0, 0xFF),),
    "ue4m3": (),
    "f16 in nibbles": ((7, 0x70), (5, 0xC0)),
}


def checked_importance(
    importance: np.ndarray | None, n_cols: int, type: QuantType, search: Search = "default"
) -> np.ndarray | None:
    """Importance f32 [n_cols] as a search of a type reads it; None where it has no use for it.

    Raises QuantizeError for rows that are not whole blocks, importance that is missing, of another length, or not
    finite.
    """
    if not n_cols or n_cols % type.block:
        raise QuantizeError(f"{n_cols} columns, {type.name} needs a multiple of {type.block}")
    if importance is None:
        if type.importance == "required":
            raise QuantizeError(
                f"{type.name} needs importance (an imatrix); choose another type or collect one"
            )
        return None
    if tuple(importance.shape) != (n_cols,):
        raise QuantizeError(f"importance has shape {list(importance.shape)}, the rows have {n_cols} columns")
    if not type.reads_importance(search):
        return None
    weights = np.ascontiguousarray(importance, np.float32)
    finite = np.isfinite(weights)
    if not finite.all():
        column = int((~finite).argmax())
        raise QuantizeError(f"importance: {weights[column]} in column {column}; collect it again")
    return weights


def require_finite(rows: np.ndarray, first_row: int = 0) -> None:
    """Raises NotFiniteError for the first NaN or infinity in f32 [n_rows, n_cols], rows counted from first_row."""
    finite = np.isfinite(rows)
    if not finite.all():
        row, column = np.argwhere(~finite)[0].tolist()
        raise NotFiniteError(float(rows[row, column]), first_row + row, column)


def scales_not_finite(type: QuantType) -> list[list[tuple[int, int]]]:
    """For each scale of a block of the type: bytes of the block, and bits of them that are all set where the scale is
    NaN or infinite."""
    found = [[(place + byte, bits) for byte, bits in _NOT_FINITE[format]] for format, place in type.scales]
    return [one for one in found if one]


def require_finite_scales(rows: np.ndarray, type: QuantType) -> None:
    """Raises TooLargeError naming the first row of u8 [n_rows, row_bytes] with a scale beyond its format."""
    blocks = rows.reshape(-1, type.bytes)
    for scale in scales_not_finite(type):
        bad = np.logical_and.reduce([blocks[:, place] & bits == bits for place, bits in scale])
        if bad.any():
            raise TooLargeError(int(bad.argmax()) // (rows.shape[1] // type.bytes), type.name)
