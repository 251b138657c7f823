"""Rows of stored tensors, whatever they are stored in: floats, block-scaled FP8, MXFP4.

A reader maps the file anew for every read, so memory holds the rows that are in use and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from quantmill.gguf_io.convert.rules import Index
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.safetensors import StoredTensor

Shape = tuple[int, ...]
SCALE_TYPES = ("F64", "F32", "F16", "BF16", "F8_E8M0")


class Reader(Protocol):
    """type: ggml's name of what rows() gives: F32, F16, BF16 (as uint16 bits) or MXFP4 (as uint8 blocks)."""

    @property
    def shape(self) -> Shape: ...

    @property
    def type(self) -> str: ...

    def rows(self, rows: Index, columns: Index) -> np.ndarray:
        """[rows, columns] of the tensor seen as a matrix: leading dimensions are rows, a vector is a column."""


@dataclass(frozen=True)
class Floats:
    """F64 is read as F32, as llama.cpp's converter reads it."""

    tensor: StoredTensor

    @property
    def shape(self) -> Shape:
        return self.tensor.shape

    @property
    def type(self) -> str:
        return self.tensor.dtype if self.tensor.dtype in ("F16", "BF16") else "F32"

    def rows(self, rows: Index, columns: Index) -> np.ndarray:
        taken = _matrix(self.tensor)[rows][:, columns]
        if self.tensor.dtype in FP8_VALUES:
            return FP8_VALUES[self.tensor.dtype][taken]
        return taken.astype(np.float32) if self.tensor.dtype == "F64" else taken


@dataclass(frozen=True)
class ScaledFP8:
    """FP8 codes times scales: one for each block of `block` (rows, columns); without blocks one for each row or
    one for all, as the shape of the scales says."""

    codes: StoredTensor
    scales: StoredTensor
    block: tuple[int, int] | None

    type = "F32"

    def __post_init__(self) -> None:
        if self.scales.dtype not in SCALE_TYPES:
            raise GGUFError(
                f"{self.scales.path}: {self.scales.name} has dtype {self.scales.dtype}; scales of FP8 must be "
                f"{', '.join(SCALE_TYPES)}"
            )
        rows, columns = _matrix_shape(self.codes)
        found = _matrix_shape(self.scales)
        if self.block is None:
            sound = found in ((rows, 1), (1, 1))
        else:
            # Blocks of stacked matrices must not reach from one into the next.
            whole = len(self.codes.shape) == 2 or self.codes.shape[-2] % self.block[0] == 0
            sound = whole and found == (-(-rows // self.block[0]), -(-columns // self.block[1]))
        if not sound:
            each = f"block of {list(self.block)}" if self.block else "row, or one for all"
            raise GGUFError(
                f"{self.scales.path}: {self.scales.name} {list(self.scales.shape)} does not fit "
                f"{self.codes.name} {list(self.codes.shape)} with a scale for each {each}"
            )

    @property
    def shape(self) -> Shape:
        return self.codes.shape

    def rows(self, rows: Index, columns: Index) -> np.ndarray:
        codes, scales = _matrix(self.codes), to_float32(_matrix(self.scales), self.scales.dtype)
        values = FP8_VALUES[self.codes.dtype][codes[rows][:, columns]]
        if self.block is None:
            return values * (scales if len(scales) == 1 else scales[rows])
        scale_rows = np.arange(codes.shape[0])[rows] // self.block[0]
        scale_columns = np.arange(codes.shape[1])[columns] // self.block[1]
        return values * scales[scale_rows][:, scale_columns]


@dataclass(frozen=True)
class MXFP4:
    """Blocks of 32 four-bit codes and an exponent each, repacked bit for bit into ggml's block_mxfp4.

    Stored: byte j of 16 holds value 2j low, 2j + 1 high. ggml: the exponent, then byte j holds value j low,
    j + 16 high.
    """

    codes: StoredTensor  # [..., rows, blocks, 16]
    exponents: StoredTensor  # [..., rows, blocks]

    type = "MXFP4"

    @property
    def shape(self) -> Shape:
        return self.codes.shape

    def rows(self, rows: Index, columns: Index) -> np.ndarray:
        n_blocks = self.codes.shape[-2]
        codes = self.codes.array().reshape(-1, n_blocks, 16)[rows]
        values = np.stack((codes & 0x0F, codes >> 4), axis=-1).reshape(*codes.shape[:2], 32)
        out = np.empty((*codes.shape[:2], 17), np.uint8)
        out[..., 0] = self.exponents.array().reshape(-1, n_blocks)[rows]
        out[..., 1:] = values[..., :16] | values[..., 16:] << 4
        return out.reshape(len(codes), -1)


def readers(config: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> dict[str, Reader]:
    """A reader for every tensor that holds values; scales belong to the reader of what they scale.

    Raises GGUFError for a quantization that is not FP8 or MXFP4, for a scale without its weight and FP8 codes
    without their scale.
    """
    packing = packing_of(config)
    found: dict[str, Reader] = {}
    for name, tensor in stored.items():
        if packing.method == "fp8" and name.endswith(UNUSED_SCALES):
            continue
        if packing.method == "fp8" and name.endswith(packing.suffix):
            if name.removesuffix(packing.suffix) not in stored:
                raise GGUFError(f"{tensor.path}: {name} has no weight to scale")
            continue
        if name.endswith("_blocks") and packing.method == "mxfp4":
            found[name] = _mxfp4(tensor, stored.get(name.removesuffix("_blocks") + "_scales"))
        elif packing.method == "fp8" and tensor.dtype in FP8_VALUES:
            scale = stored.get(name + packing.suffix)
            if scale is None:
                raise GGUFError(f"{tensor.path}: {name} has no scale ({name}{packing.suffix})")
            found[name] = ScaledFP8(tensor, scale, packing.block)
        else:
            found[name] = Floats(tensor)
    return found


def check_values(name: str, reader: Reader) -> None:
    """Raises GGUFError when a tensor that becomes part of the model holds integers."""
    if isinstance(reader, Floats) and reader.tensor.dtype not in ("F64", "F32", "F16", "BF16", *FP8_VALUES):
        raise GGUFError(
            f"{reader.tensor.path}: tensor {name} has dtype {reader.tensor.dtype}; "
            "weights must be F64, F32, F16, BF16 or FP8"
        )


def to_float32(values: np.ndarray, type: str) -> np.ndarray:
    """float32 of F32, F16, F64 numbers, of BF16 bits or E8M0 exponents."""
    if type == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    if type == "F8_E8M0":  # a power of two; 255 is NaN
        return np.where(values == 255, np.float32(np.nan), np.exp2(values.astype(np.float32) - 127))
    return values.astype(np.float32, copy=False)


def _mxfp4(codes: StoredTensor, exponents: StoredTensor | None) -> MXFP4:
    if exponents is None:
        raise GGUFError(f"{codes.path}: {codes.name} has no block exponents ({codes.name[:-6]}scales)")
    if codes.dtype != "U8" or codes.shape[-1] != 16 or exponents.shape != codes.shape[:-1]:
        raise GGUFError(
            f"{codes.path}: {codes.name} {codes.dtype} {list(codes.shape)} with exponents "
            f"{list(exponents.shape)} is not MXFP4"
        )
    return MXFP4(codes, exponents)


@dataclass(frozen=True)
class Packing:
    """How a checkpoint's weights are stored. method: fp8, mxfp4 or None (as floats). Of FP8: what is appended to a
    tensor's name to name its scales, and the block (rows, columns) of one scale, None: a row's or the tensor's."""

    method: str | None = None
    suffix: str = "_scale_inv"
    block: tuple[int, int] | None = None


# Of activations and of the cache: llama.cpp computes with neither.
UNUSED_SCALES = (".activation_scale", "_activation_scale", ".input_scale", ".k_scale", ".v_scale")


def packing_of(config: Mapping[str, Any]) -> Packing:
    """What quantization_config says. Raises GGUFError, naming method and format, for one that cannot be read."""
    settings = config.get("quantization_config") or {}
    if not isinstance(settings, Mapping):
        raise GGUFError(f"config.json: quantization_config must be an object, not {settings!r}")
    if not settings:
        return Packing()
    method, detail = settings.get("quant_method"), _detail(settings)
    if method == "mxfp4":
        return Packing("mxfp4")
    if method == "fp8":
        return Packing("fp8", block=_block(settings.get("weight_block_size")))
    if method == "modelopt" and settings.get("quant_algo") in ("FP8", "FP8_PER_CHANNEL_PER_TOKEN"):
        return Packing("fp8", "_scale")
    if method == "compressed-tensors" and settings.get("format") in ("float-quantized", "naive-quantized"):
        weights = _only_group(settings)
        if weights.get("strategy") in ("channel", "block", "tensor") and weights.get("type") == "float":
            return Packing("fp8", "_scale", _block(weights.get("block_structure")))
    raise GGUFError(
        f"config.json: the weights are quantized by {method}{detail}, which is not supported "
        "(FP8 of several makers and MXFP4 are); convert the unquantized model"
    )


def _detail(settings: Mapping[str, Any]) -> str:
    """The format within a method, as far as the settings name it."""
    weights = _only_group(settings)
    bits = settings.get("bits", settings.get("num_bits", weights.get("num_bits")))
    named = [settings.get(key) for key in ("quant_algo", "format", "fmt", "bnb_4bit_quant_type")]
    words = [word for word in named if isinstance(word, str)]
    words += [f"{bits} bits"] if isinstance(bits, int) else []
    return f" ({', '.join(words)})" if words else ""


def _only_group(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The weights' settings where all tensors share one group of compressed-tensors, else nothing."""
    groups = settings.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) != 1:
        return {}
    group = next(iter(groups.values()))
    weights = group.get("weights") if isinstance(group, Mapping) else None
    return weights if isinstance(weights, Mapping) else {}


def _block(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
        raise GGUFError(f"config.json: FP8 block size {size!r} is not [rows, columns]")
    return size[0], size[1]


def _matrix_shape(tensor: StoredTensor) -> tuple[int, int]:
    columns = tensor.shape[-1] if len(tensor.shape) > 1 else 1
    return math.prod(tensor.shape) // max(columns, 1), columns


def _matrix(tensor: StoredTensor) -> np.ndarray:
    return tensor.array().reshape(_matrix_shape(tensor))


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
