"""Four-bit floats, E2M1: MXFP4 and NVFP4, repacked bit for bit into ggml's blocks.

Checkpoints store byte j of a block with value 2j low and 2j + 1 high; ggml with value j low and, of the second half of
the block (of 32, or of a sub-block of 16), value j high.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from quantmill.gguf_io.convert.rules import Index
from quantmill.gguf_io.convert.storage.format import Format, Parts
from quantmill.gguf_io.convert.storage.numbers import (
    FP4_VALUES,
    FP8_VALUES,
    POWERS,
    halves,
    pairs,
    to_float32,
)
from quantmill.gguf_io.convert.storage.reader import NO_SCALES, Shape, matrix_shape
from quantmill.gguf_io.convert.storage.scales import SCALE_TYPES, require_type
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.safetensors import StoredTensor

BYTES = ("U8", "I8")


@dataclass(frozen=True)
class MXFP4:
    """Blocks of 32 codes and the exponent of their scale, E8M0."""

    codes: StoredTensor  # U8, half as many as values
    exponents: StoredTensor
    shape: Shape

    plain = "F32"
    forms = ("MXFP4",)
    factors = NO_SCALES

    def values(self, rows: Index, columns: Index) -> np.ndarray:
        codes, exponents = self._taken(rows)
        values = FP4_VALUES[pairs(codes)].reshape(*exponents.shape, 32) * POWERS[exponents][..., None]
        return values.reshape(len(codes), -1)[:, columns]

    def blocks(self, rows: Index, form: str) -> np.ndarray:
        codes, exponents = self._taken(rows)
        if (exponents == 255).any():
            raise GGUFError(
                f"{self.exponents.path}: {self.exponents.name}: a scale is NaN; the model is damaged"
            )
        out = np.empty((*exponents.shape, 17), np.uint8)
        out[..., 0] = exponents
        out[..., 1:] = halves(pairs(codes), 32).reshape(*exponents.shape, 16)
        return out.reshape(len(codes), -1)

    def _taken(self, rows: Index) -> tuple[np.ndarray, np.ndarray]:
        n_columns = self.shape[-1]
        codes = self.codes.array().view(np.uint8).reshape(-1, n_columns // 2)[rows]
        return codes, self.exponents.array().reshape(-1, n_columns // 32)[rows]


@dataclass(frozen=True)
class NVFP4:
    """Sub-blocks of 16 codes with a scale in E4M3 each, under one factor for the whole tensor.

    ggml has no sign in the scales and keeps the factor in a tensor of its own, `.scale`; `.input_scale` is the
    activations'. global_scale, input_scale: stored as factors, or `inverted`: as what values were divided by.
    """

    codes: StoredTensor
    scales: StoredTensor
    global_scale: StoredTensor | None
    input_scale: StoredTensor | None
    inverted: bool
    shape: Shape

    plain = "F32"

    @property
    def forms(self) -> tuple[str, ...]:
        return ("NVFP4",) if self.shape[-1] % 64 == 0 else ()

    @property
    def factors(self) -> Mapping[str, float]:
        return {"scale": self._factor(self.global_scale), "input_scale": self._factor(self.input_scale)}

    def values(self, rows: Index, columns: Index) -> np.ndarray:
        codes, scales = self._taken(rows)
        with np.errstate(over="ignore", invalid="ignore"):
            factors = FP8_VALUES["F8_E4M3"][scales] * np.float32(self.factors["scale"])
            values = FP4_VALUES[pairs(codes)].reshape(*scales.shape, 16) * factors[..., None]
        return values.reshape(len(codes), -1)[:, columns]

    def blocks(self, rows: Index, form: str) -> np.ndarray:
        codes, scales = self._taken(rows)
        if (scales & 127 == 127).any() or (scales > 128).any():
            raise GGUFError(
                f"{self.scales.path}: {self.scales.name}: a scale is NaN or negative; the model is damaged"
            )
        out = np.empty((len(codes), self.shape[-1] // 64, 36), np.uint8)
        out[..., :4] = (scales & 127).reshape(len(codes), -1, 4)
        out[..., 4:] = halves(pairs(codes), 16).reshape(len(codes), -1, 32)
        return out.reshape(len(codes), -1)

    def _taken(self, rows: Index) -> tuple[np.ndarray, np.ndarray]:
        n_columns = self.shape[-1]
        codes = self.codes.array().view(np.uint8).reshape(-1, n_columns // 2)[rows]
        return codes, self.scales.array().reshape(-1, n_columns // 16)[rows]

    def _factor(self, stored: StoredTensor | None) -> float:
        if stored is None:
            return 1.0
        value = to_float32(stored.array().reshape(1), stored.dtype)
        with np.errstate(divide="ignore"):
            return float(np.float32(1) / value[0] if self.inverted else value[0])


def _check(
    kind: str, codes: StoredTensor, scales: StoredTensor, shape: Shape, size: int, types: tuple[str, ...]
) -> None:
    wanted = (*shape[:-1], shape[-1] // size)
    if shape[-1] % size or scales.dtype not in types or scales.shape != wanted:
        raise GGUFError(
            f"{codes.path}: {codes.name} {codes.dtype} {list(codes.shape)} with {scales.name} {scales.dtype} "
            f"{list(scales.shape)} is not {kind}: scales must be {' or '.join(types)} {list(wanted)}"
        )


def _mxfp4_in_blocks(parts: Parts) -> MXFP4:
    """GPT-OSS: codes [..., rows, blocks, 16]."""
    codes, exponents = parts["codes"], parts["scale"]
    if codes.shape[-1] != 16 or len(codes.shape) < 3:
        raise GGUFError(f"{codes.path}: {codes.name} {list(codes.shape)} is not MXFP4: blocks have 16 bytes")
    shape = (*codes.shape[:-2], codes.shape[-2] * 32)
    _check("MXFP4", codes, exponents, shape, 32, ("U8", "F8_E8M0"))
    return MXFP4(codes, exponents, shape)


def _mxfp4_in_rows(parts: Parts) -> MXFP4:
    codes, exponents = parts["codes"], parts["scale"]
    shape = (*codes.shape[:-1], codes.shape[-1] * 2)
    _check("MXFP4", codes, exponents, shape, 32, ("U8", "F8_E8M0"))
    return MXFP4(codes, exponents, shape)


def _nvfp4(inverted: bool, parts: Parts) -> NVFP4:
    codes, scales = parts["codes"], parts["scale"]
    shape = (*codes.shape[:-1], codes.shape[-1] * 2)
    _check("NVFP4", codes, scales, shape, 16, ("F8_E4M3",))
    for role in ("global", "input"):
        if role in parts:
            require_type(parts[role], SCALE_TYPES)
        if role in parts and matrix_shape(parts[role].shape) != (1, 1):
            found = parts[role]
            raise GGUFError(
                f"{found.path}: {found.name} {list(found.shape)}: NVFP4 has one number there for a tensor"
            )
    return NVFP4(codes, scales, parts.get("global"), parts.get("input"), inverted, shape)


MXFP4_BLOCKS = Format("MXFP4", "_blocks", BYTES, {"scale": "_scales"}, _mxfp4_in_blocks)
# DeepSeek-V4
MXFP4_ROWS = Format("MXFP4", ".weight", BYTES, {"scale": ".scale"}, _mxfp4_in_rows)
# MiMo V2.5
MXFP4_OF_MIMO = Format("MXFP4", ".weight", BYTES, {"scale": ".weight_scale"}, _mxfp4_in_rows)
MXFP4_PACKED = Format(
    "mxfp4-pack-quantized",
    ".weight_packed",
    BYTES,
    {"scale": ".weight_scale"},
    _mxfp4_in_rows,
    {"input": ".input_global_scale"},
    ".weight",
)
NVFP4_MODELOPT = Format(
    "NVFP4",
    ".weight",
    BYTES,
    {"scale": ".weight_scale"},
    lambda parts: _nvfp4(False, parts),
    {"global": ".weight_scale_2", "input": ".input_scale"},
)
NVFP4_PACKED = Format(
    "nvfp4-pack-quantized",
    ".weight_packed",
    BYTES,
    {"scale": ".weight_scale", "global": ".weight_global_scale"},
    lambda parts: _nvfp4(True, parts),
    {"input": ".input_global_scale"},
    ".weight",
)
