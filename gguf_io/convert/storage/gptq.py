"""GPTQ, as AutoGPTQ and GPTQModel write it (gptqmodel/nn_modules/qlinear)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from quantmill.gguf_io.convert.rules import Index
from quantmill.gguf_io.convert.storage.format import Format, Parts
from quantmill.gguf_io.convert.storage.integers import Integers, groups_of
from quantmill.gguf_io.convert.storage.numbers import n_words, to_float32, unpacked
from quantmill.gguf_io.convert.storage.reader import Shape
from quantmill.gguf_io.convert.storage.scales import SCALE_TYPES, require_type
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.safetensors import StoredTensor


@dataclass(frozen=True)
class GPTQ(Integers):
    """Words of codes run along the columns of the matrix, which is stored transposed; zeros along its rows.

    offset: what is added to stored zeros: 1 in the first version of the format.
    """

    codes: StoredTensor  # I32 [n_columns · bits / 32, n_rows]
    scales: StoredTensor  # [n_groups, n_rows]
    zeros: StoredTensor  # I32 [n_groups, n_rows · bits / 32]
    order: StoredTensor | None  # I32 [n_columns]
    n_bits: int
    offset: int

    @property
    def shape(self) -> Shape:
        return (self.codes.shape[1], self.codes.shape[0] * 32 // self.n_bits)

    @property
    def bits(self) -> int:
        return self.n_bits

    @cached_property
    def group_of_column(self) -> np.ndarray:
        n_groups, n_columns = self.scales.shape[0], self.shape[-1]
        if self.order is None:
            return np.arange(n_columns) // -(-n_columns // n_groups)
        return groups_of(self.order, n_columns, n_groups)

    def codes_of(self, rows: Index) -> np.ndarray:
        return unpacked(self.codes.array()[:, rows].T, self.n_bits, self.shape[-1], True)

    def scales_of(self, rows: Index) -> np.ndarray:
        return to_float32(self.scales.array()[:, rows].T, self.scales.dtype)

    def zeros_of(self, rows: Index) -> np.ndarray | int:
        zeros = unpacked(self.zeros.array(), self.n_bits, self.shape[-2], True)
        return zeros[:, rows].T.astype(np.int16) + self.offset


def gptq(bits: int, offset: int) -> Format:
    def make(parts: Parts) -> GPTQ:
        codes, scales, zeros = parts["codes"], parts["scale"], parts["zero"]
        require_type(scales, SCALE_TYPES)
        n_rows = codes.shape[-1]
        n_groups = scales.shape[0] if len(scales.shape) == 2 else 0
        wanted = ((n_groups, n_rows), (n_groups, n_words(n_rows, bits, True)), "I32")
        found = (scales.shape, zeros.shape, zeros.dtype)
        if len(codes.shape) != 2 or found != wanted or not 0 < n_groups <= codes.shape[0] * 32 // bits:
            raise GGUFError(
                f"{codes.path}: {codes.name} {list(codes.shape)} with {scales.name} {list(scales.shape)} and "
                f"{zeros.name} {zeros.dtype} {list(zeros.shape)} is not GPTQ with {bits} bits, which config.json says"
            )
        return GPTQ(codes, scales, zeros, parts.get("order"), bits, offset)

    return Format(
        f"GPTQ, {bits} bits",
        ".qweight",
        ("I32",),
        {"scale": ".scales", "zero": ".qzeros"},
        make,
        {"order": ".g_idx"},
        ".weight",
        last=True,
    )
