"""Integer codes under scales: value = scale · (code - zero). What packs them differs; the blocks they become do not.

Where a scale is a binary16 exactly and the zero is the middle of the codes, the values are those of ggml's Q4_0 or Q8_0
block with the same scale and codes: such tensors can be kept without loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np

from quantmill.gguf_io.convert.rules import Index
from quantmill.gguf_io.convert.storage.numbers import fits_half, halves
from quantmill.gguf_io.convert.storage.reader import NO_SCALES, Shape
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.safetensors import StoredTensor

BLOCK = 32
# Rows looked at together when it is asked whether a tensor fits a type of ggml.
_ROWS = 4096


class Integers(ABC):
    """What the packings share. Codes are from 0 on; a subclass says how rows of them, of scales and zeros are read."""

    plain = "F32"
    factors = NO_SCALES

    @property
    @abstractmethod
    def shape(self) -> Shape: ...

    @property
    @abstractmethod
    def bits(self) -> int: ...

    @abstractmethod
    def codes_of(self, rows: Index) -> np.ndarray:
        """u8 [n_rows, n_columns]"""

    @abstractmethod
    def scales_of(self, rows: Index) -> np.ndarray:
        """f32 [n_rows, n_groups]"""

    @abstractmethod
    def zeros_of(self, rows: Index) -> np.ndarray | int:
        """The code of the value 0: int [n_rows, n_groups], or one number for all."""

    @property
    @abstractmethod
    def group_of_column(self) -> np.ndarray:
        """Which scale and zero of a row a column has."""

    def values(self, rows: Index, columns: Index) -> np.ndarray:
        groups = self.group_of_column[columns]
        zeros = self.zeros_of(rows)
        if not isinstance(zeros, int):
            zeros = np.take(zeros, groups, axis=1)
        codes = np.subtract(self.codes_of(rows)[:, columns], zeros, dtype=np.int16).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            return np.multiply(codes, np.take(self.scales_of(rows), groups, axis=1), out=codes)

    @cached_property
    def forms(self) -> tuple[str, ...]:
        """Blocks of 32, where each lies in one group."""
        groups = self.group_of_column
        if len(groups) % BLOCK or (groups.reshape(-1, BLOCK) != groups[::BLOCK, None]).any():
            return ()
        exact, packed = ("Q4_0", "INT4") if self.bits <= 4 else ("Q8_0", "INT8")
        return (exact, packed) if self._symmetric_halves() else (packed,)

    def blocks(self, rows: Index, form: str) -> np.ndarray:
        """INT4, INT8: the scale, F32, the zero, U16, and 16 or 32 bytes of codes."""
        groups = self.group_of_column[::BLOCK]
        scales = self.scales_of(rows)[:, groups]
        n_rows, n_blocks = scales.shape
        if form in ("Q4_0", "Q8_0"):
            head = scales.astype(np.float16)[..., None].view(np.uint8)
        else:
            head = np.empty((n_rows, n_blocks, 6), np.uint8)
            head[..., :4] = np.ascontiguousarray(scales)[..., None].view(np.uint8)
            zeros = self.zeros_of(rows)
            zeros = zeros if isinstance(zeros, int) else zeros[:, groups]
            head[..., 4:] = np.broadcast_to(zeros, scales.shape).astype("<u2")[..., None].view(np.uint8)
        codes = _CODES[form](self, rows).reshape(n_rows, n_blocks, -1)
        return np.concatenate((head, codes), axis=-1).reshape(n_rows, -1)

    def pairs_of(self, rows: Index) -> np.ndarray:
        """u8 [n_rows, n_columns / 2]: codes below 16, an even column's low."""
        codes = self.codes_of(rows)
        return codes[:, ::2] | codes[:, 1::2] << 4

    def halves_of(self, rows: Index) -> np.ndarray:
        """Codes of fewer than four bits are moved to the middle that 16 codes have."""
        return halves(self.codes_of(rows) + np.uint8(8 - (1 << self.bits - 1)), BLOCK)

    def signed_of(self, rows: Index) -> np.ndarray:
        return self.codes_of(rows) - np.uint8(1 << self.bits - 1)

    def _symmetric_halves(self) -> bool:
        n_rows, middle = int(np.prod(self.shape[:-1])), 1 << self.bits - 1
        for first in range(0, n_rows, _ROWS):
            rows = slice(first, min(first + _ROWS, n_rows))
            if not (np.all(self.zeros_of(rows) == middle) and fits_half(self.scales_of(rows))):
                return False
        return True


def groups_of(order: StoredTensor, n_columns: int, n_groups: int) -> np.ndarray:
    groups = order.array().reshape(-1)
    if len(groups) != n_columns or groups.min(initial=0) < 0 or groups.max(initial=0) >= n_groups:
        raise GGUFError(
            f"{order.path}: {order.name} must name one of {n_groups} groups for each of {n_columns} columns"
        )
    return groups.astype(np.int64)


# The codes of a block, by its type.
_CODES: Mapping[str, Callable[[Integers, Index], np.ndarray]] = {
    "Q4_0": lambda reader, rows: reader.halves_of(rows),
    "Q8_0": lambda reader, rows: reader.signed_of(rows),
    "INT4": lambda reader, rows: reader.pairs_of(rows),
    "INT8": lambda reader, rows: reader.codes_of(rows),
}
