"""Integers as compressed-tensors stores them: pack-quantized in 32-bit words, int-quantized in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from quantmill.gguf_io.convert.rules import Index
from quantmill.gguf_io.convert.storage.format import Format, Parts
from quantmill.gguf_io.convert.storage.integers import Integers, groups_of
from quantmill.gguf_io.convert.storage.numbers import n_words, unpacked
from quantmill.gguf_io.convert.storage.reader import Shape, matrix
from quantmill.gguf_io.convert.storage.scales import Block, Scales, scales_of
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.safetensors import StoredTensor


@dataclass(frozen=True)
class Packed(Integers):
    """compressed-tensors' pack-quantized: rows of codes in 32-bit words. Zeros are packed along the rows. `order`: the
    group of each column, where columns were reordered."""

    codes: StoredTensor
    scales: Scales
    zeros: StoredTensor | None
    order: StoredTensor | None
    n_bits: int
    straddling: bool

    @property
    def shape(self) -> Shape:
        return self.scales.shape

    @property
    def bits(self) -> int:
        return self.n_bits

    @cached_property
    def group_of_column(self) -> np.ndarray:
        if self.order is None:
            return self.scales.of_column
        return groups_of(self.order, self.shape[-1], self.scales.per_matrix[1])

    def codes_of(self, rows: Index) -> np.ndarray:
        return unpacked(matrix(self.codes)[rows], self.n_bits, self.shape[-1], self.straddling)

    def pairs_of(self, rows: Index) -> np.ndarray:
        if self.n_bits != 4:
            return super().pairs_of(rows)
        return np.ascontiguousarray(matrix(self.codes)[rows]).view(np.uint8)[:, : self.shape[-1] // 2]

    def scales_of(self, rows: Index) -> np.ndarray:
        return self.scales.of_rows(rows)

    def zeros_of(self, rows: Index) -> np.ndarray | int:
        if self.zeros is None:
            return 1 << self.n_bits - 1
        all_rows = unpacked(matrix(self.zeros).T, self.n_bits, self.shape[-2], self.straddling)
        return all_rows.T[rows]


@dataclass(frozen=True)
class Bytes(Integers):
    """compressed-tensors' int-quantized: signed bytes. zeros: signed bytes too, where their scales are."""

    codes: StoredTensor
    scales: Scales
    zeros: Scales | None

    bits = 8

    @property
    def shape(self) -> Shape:
        return self.codes.shape

    @property
    def group_of_column(self) -> np.ndarray:
        return self.scales.of_column

    def codes_of(self, rows: Index) -> np.ndarray:
        return matrix(self.codes)[rows].view(np.uint8) ^ np.uint8(128)

    def scales_of(self, rows: Index) -> np.ndarray:
        return self.scales.of_rows(rows)

    def zeros_of(self, rows: Index) -> np.ndarray | int:
        return 128 if self.zeros is None else self.zeros.of_rows(rows).astype(np.int16) + 128


def packed(bits: int, blocks: tuple[Block | None, ...]) -> Format:
    """compressed-tensors' pack-quantized with codes of `bits` bits."""

    def make(parts: Parts) -> Packed:
        codes, stated = parts["codes"], parts["shape"]
        shape = tuple(int(n) for n in stated.array().reshape(-1))
        words = (
            [n_words(shape[-1], bits, straddling) for straddling in (True, False)] if len(shape) > 1 else []
        )
        if codes.shape not in [(*shape[:-1], n) for n in words]:
            raise GGUFError(
                f"{codes.path}: {codes.name} {list(codes.shape)} does not hold {list(shape)} ({stated.name}) codes of "
                f"{bits} bits, which config.json says"
            )
        straddling = codes.shape[-1] == words[0]
        scales = scales_of(codes, shape, parts["scale"], blocks)
        zeros = parts.get("zero")
        wanted = (n_words(shape[-2], bits, straddling), scales.per_matrix[1])
        if zeros is not None and (zeros.shape != wanted or zeros.dtype != "I32" or len(shape) > 2):
            raise GGUFError(
                f"{zeros.path}: {zeros.name} {zeros.dtype} {list(zeros.shape)} is not the zeros of {codes.name}: "
                f"I32 {list(wanted)}"
            )
        return Packed(codes, scales, zeros, parts.get("order"), bits, straddling)

    return Format(
        "pack-quantized",
        ".weight_packed",
        ("I32",),
        {"scale": ".weight_scale", "shape": ".weight_shape"},
        make,
        {"zero": ".weight_zero_point", "order": ".weight_g_idx"},
        ".weight",
        last=True,
    )


def signed_bytes(blocks: tuple[Block | None, ...]) -> Format:
    """compressed-tensors' int-quantized, and naive-quantized with integers."""

    def make(parts: Parts) -> Bytes:
        codes = parts["codes"]
        scales, zeros = scales_of(codes, codes.shape, parts["scale"], blocks), None
        if "zero" in parts:
            if parts["zero"].shape != parts["scale"].shape or parts["zero"].dtype != "I8":
                raise GGUFError(f"{codes.path}: {parts['zero'].name} is not a signed byte for each scale")
            zeros = Scales(parts["zero"], scales.shape, scales.block, "I8")
        return Bytes(codes, scales, zeros)

    optional = {"zero": ".weight_zero_point"}
    return Format("int-quantized", ".weight", ("I8",), {"scale": ".weight_scale"}, make, optional)
