"""BitNet's three values, as transformers stores them (integrations/bitnet.py: unpack_weights)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantmill.gguf_io.convert.rules import Index
from quantmill.gguf_io.convert.storage.format import Format, Parts
from quantmill.gguf_io.convert.storage.integers import Integers
from quantmill.gguf_io.convert.storage.numbers import to_float32
from quantmill.gguf_io.convert.storage.reader import Shape
from quantmill.gguf_io.convert.storage.scales import SCALE_TYPES, require_type
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.safetensors import StoredTensor


@dataclass(frozen=True)
class Ternary(Integers):
    """BitNet: codes 0, 1, 2 for -1, 0, 1, four rows in a byte, a quarter of all rows apart; one scale, by which
    BitLinear divides and AutoBitLinear multiplies (`inverted`: divides)."""

    codes: StoredTensor  # U8 [n_rows / 4, n_columns]
    scale: StoredTensor
    inverted: bool

    bits = 8  # as they are handed on

    @property
    def shape(self) -> Shape:
        return (4 * self.codes.shape[0], self.codes.shape[1])

    @property
    def group_of_column(self) -> np.ndarray:
        return np.zeros(self.shape[-1], np.int64)

    def codes_of(self, rows: Index) -> np.ndarray:
        index, quarter = np.arange(self.shape[0])[rows], self.codes.shape[0]
        packed = self.codes.array()[index % quarter]
        return packed >> (2 * (index // quarter)).astype(np.uint8)[:, None] & 3

    def scales_of(self, rows: Index) -> np.ndarray:
        scale = to_float32(self.scale.array().reshape(1), self.scale.dtype)
        with np.errstate(divide="ignore"):
            scale = np.float32(1) / scale if self.inverted else scale
        return np.broadcast_to(scale, (len(np.arange(self.shape[0])[rows]), 1))

    def zeros_of(self, rows: Index) -> np.ndarray | int:
        return 1


def ternary(inverted: bool) -> Format:
    def make(parts: Parts) -> Ternary:
        codes, scale = parts["codes"], parts["scale"]
        require_type(scale, SCALE_TYPES)
        if len(codes.shape) != 2 or int(np.prod(scale.shape)) != 1:
            raise GGUFError(
                f"{codes.path}: {codes.name} {list(codes.shape)} with {scale.name} {list(scale.shape)} is not "
                "BitNet's: a matrix and one scale"
            )
        return Ternary(codes, scale, inverted)

    return Format("BitNet", ".weight", ("U8", "I8"), {"scale": ".weight_scale"}, make)
