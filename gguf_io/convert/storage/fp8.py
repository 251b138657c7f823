"""FP8 codes, E4M3 or E5M2, under scales: of DeepSeek, Qwen, Mistral, ModelOpt, FBGEMM, compressed-tensors, MXFP8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantmill.gguf_io.convert.rules import Index
from quantmill.gguf_io.convert.storage.format import Format, Parts
from quantmill.gguf_io.convert.storage.numbers import FP8_VALUES
from quantmill.gguf_io.convert.storage.reader import NO_SCALES, Shape, matrix
from quantmill.gguf_io.convert.storage.scales import (
    SCALE_TYPES,
    Block,
    Scales,
    require_type,
    scales_of,
)
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.safetensors import StoredTensor

BLOCK = 32  # values of a block as it is handed on
_FORMS = {"F8_E4M3": "FP8_E4M3", "F8_E5M2": "FP8_E5M2"}


@dataclass(frozen=True)
class FP8:
    """Every value is its code's times the scale of its block, rounded once, to float32."""

    codes: StoredTensor
    scales: Scales

    plain = "F32"
    factors = NO_SCALES

    @property
    def shape(self) -> Shape:
        return self.codes.shape

    @property
    def forms(self) -> tuple[str, ...]:
        columns, width = self.shape[-1], self.scales.block[1]
        return (_FORMS[self.codes.dtype],) if columns % BLOCK == 0 and width % BLOCK == 0 else ()

    def values(self, rows: Index, columns: Index) -> np.ndarray:
        codes = matrix(self.codes)[rows][:, columns]
        values = np.take(FP8_VALUES[self.codes.dtype], codes)
        with np.errstate(over="ignore", invalid="ignore"):  # found where finite numbers are asked for
            return np.multiply(values, self.scales.spread(rows, columns), out=values)

    def blocks(self, rows: Index, form: str) -> np.ndarray:
        """Blocks of a scale, F32, and 32 codes."""
        codes = matrix(self.codes)[rows].reshape(-1, self.shape[-1] // BLOCK, BLOCK)
        out = np.empty((*codes.shape[:2], 4 + BLOCK), np.uint8)
        scales = np.ascontiguousarray(self.scales.spread(rows, slice(None, None, BLOCK)))
        out[..., :4] = scales.view(np.uint8).reshape(*codes.shape[:2], 4)
        out[..., 4:] = codes
        return out.reshape(len(codes), -1)


def fp8_in_ranks(mark: str, scale: str, block: Block, ranks: int) -> Format:
    """As `fp8`, of matrices in so many parts of rows, of which each begins blocks of its own."""

    def make(parts: Parts) -> FP8:
        codes, scale = parts["codes"], parts["scale"]
        require_type(scale, SCALE_TYPES)
        scales = Scales(scale, (ranks, codes.shape[0] // ranks, codes.shape[1]), block, scale.dtype)
        wanted = (ranks * scales.per_matrix[0], scales.per_matrix[1])
        if codes.shape[0] % ranks or scale.shape != wanted:
            raise GGUFError(
                f"{scale.path}: {scale.name} {list(scale.shape)} does not fit {codes.name} {list(codes.shape)} in "
                f"{ranks} parts with a scale for each block of {list(block)}; the checkpoint is wrong"
            )
        return FP8(codes, scales)

    return Format("FP8", mark, tuple(FP8_VALUES), {"scale": scale}, make)


def fp8(mark: str, scale: str, blocks: Sequence[Block | None], scale_type: str = "") -> Format:
    """FP8 codes whose name ends with `mark`, with the scales where it ends with `scale`."""

    def make(parts: Parts) -> FP8:
        codes, scale = parts["codes"], parts["scale"]
        return FP8(codes, scales_of(codes, codes.shape, scale, blocks, scale_type))

    return Format("FP8", mark, tuple(FP8_VALUES), {"scale": scale}, make)
