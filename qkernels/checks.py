"""What is checked before and after a search: columns, importance, weights and scales. numpy only."""

from __future__ import annotations

import numpy as np

from quantmill.qkernels.types import NotFiniteError, QuantizeError, QuantType, Search, TooLargeError


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


def require_finite_scales(rows: np.ndarray, type: QuantType) -> None:
    """Raises TooLargeError naming the first row of u8 [n_rows, row_bytes] with a scale beyond its format."""
    blocks = rows.reshape(-1, type.bytes)
    for format, place in type.scales:
        if format == "f16":
            bad = (blocks[:, place + 1] & 0x7C) == 0x7C
        elif format == "bf16":
            bad = (blocks[:, place + 1] & 0x7F == 0x7F) & (blocks[:, place] & 0x80 == 0x80)
        elif format == "e8m0":
            bad = blocks[:, place] == 0xFF
        elif format == "ue4m3":  # every byte is a number: what would be NaN is read as zero
            continue
        else:  # the four high nibbles of four words, as IQ1_M keeps its half
            bad = (blocks[:, place + 7] & 0x70 == 0x70) & (blocks[:, place + 5] & 0xC0 == 0xC0)
        if bad.any():
            raise TooLargeError(int(bad.argmax()) // (rows.shape[1] // type.bytes), type.name)
