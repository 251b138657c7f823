"""What reads a stored matrix, whatever it is stored in; and the reader of plain floats.

A reader maps the file anew for every read, so memory holds the rows that are in use and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np

from quantmill.gguf_io.convert.rules import Index
from quantmill.gguf_io.convert.storage.numbers import FP8_VALUES
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.safetensors import StoredTensor

Shape = tuple[int, ...]
ALL = slice(None)
NO_SCALES: Mapping[str, float] = MappingProxyType({})


class Reader(Protocol):
    """shape: of the tensor in Hugging Face order. plain: F32, F16 or BF16, what `values` gives.

    forms: the blocks in which whole rows can be had without loss, the best first: types of ggml, or of the block types
    that only checkpoints have (qkernels/types.py: CHECKPOINT_TYPES).
    factors: numbers that a GGUF has beside the blocks, "scale" and "input_scale"; `values` has "scale" multiplied in.
    """

    @property
    def shape(self) -> Shape: ...

    @property
    def plain(self) -> str: ...

    @property
    def forms(self) -> tuple[str, ...]: ...

    @property
    def factors(self) -> Mapping[str, float]: ...

    def values(self, rows: Index, columns: Index) -> np.ndarray:
        """[rows, columns] of the tensor seen as a matrix: leading dimensions are rows, a vector is a column. BF16 as
        uint16 bits."""

    def blocks(self, rows: Index, form: str) -> np.ndarray:
        """u8 [n_rows, row_bytes]: whole rows in one of the `forms`."""


@dataclass(frozen=True)
class Floats:
    """F64 is read as F32, as llama.cpp's converter reads it; eight-bit floats without scales as what they are."""

    tensor: StoredTensor

    forms = ()
    factors = NO_SCALES

    @property
    def shape(self) -> Shape:
        return self.tensor.shape

    @property
    def plain(self) -> str:
        return self.tensor.dtype if self.tensor.dtype in ("F16", "BF16") else "F32"

    def values(self, rows: Index, columns: Index) -> np.ndarray:
        taken = matrix(self.tensor)[rows][:, columns]
        if self.tensor.dtype in FP8_VALUES:
            return FP8_VALUES[self.tensor.dtype][taken]
        return taken.astype(np.float32) if self.tensor.dtype == "F64" else taken

    def blocks(self, rows: Index, form: str) -> np.ndarray:
        raise AssertionError(f"{self.tensor.name} is not stored in blocks")


def check_values(name: str, reader: Reader) -> None:
    """Raises GGUFError when a tensor that becomes part of the model holds integers."""
    if isinstance(reader, Floats) and reader.tensor.dtype not in ("F64", "F32", "F16", "BF16", *FP8_VALUES):
        raise GGUFError(
            f"{reader.tensor.path}: tensor {name} has dtype {reader.tensor.dtype}; "
            "weights must be F64, F32, F16, BF16 or FP8"
        )


def check_indices(name: str, reader: Reader, count: int) -> None:
    """Raises GGUFError when a tensor does not hold whole numbers from 0 to below `count`."""
    if not (isinstance(reader, Floats) and reader.tensor.dtype in ("I64", "I32")):
        raise GGUFError(f"{name}: holds numbers of things, which must be I64 or I32")
    values = reader.values(ALL, ALL)
    if values.size and not 0 <= int(values.min()) <= int(values.max()) < count:
        raise GGUFError(
            f"{reader.tensor.path}: tensor {name} has numbers from {values.min()} to {values.max()}; there are {count}"
        )


def matrix_shape(shape: Shape) -> tuple[int, int]:
    """Rows and columns of a tensor seen as a matrix."""
    columns = shape[-1] if len(shape) > 1 else 1
    return math.prod(shape) // max(columns, 1), columns


def matrix(tensor: StoredTensor) -> np.ndarray:
    return tensor.array().reshape(matrix_shape(tensor.shape))
