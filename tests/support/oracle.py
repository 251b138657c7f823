"""llama.cpp's own quantizer and dequantizer, exported by xllamacpp's extension module: the judge of bytes."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from pathlib import Path

import numpy as np

from quantmill.qkernels.types import TYPES


class _TypeTraits(ctypes.Structure):
    """ggml.h: struct ggml_type_traits, up to the function we call."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


@functools.cache
def _ggml() -> ctypes.CDLL:
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise RuntimeError("xllamacpp, the oracle, is not installed: pip install 'quantmill[test]'")
    library = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("xllamacpp*.so"))))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
        *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
    ]
    library.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
    return library


def type_traits(type: str) -> tuple[str, int, int]:
    """What ggml calls a type, its block in weights and in bytes."""
    traits = _ggml().ggml_get_type_traits(TYPES[type].id).contents
    return traits.type_name.decode(), traits.blck_size, traits.type_size


def quantize(rows: np.ndarray, type: str, importance: np.ndarray | None = None) -> np.ndarray:
    """rows [n_rows, n_cols] f32, importance [n_cols] f32 → [n_rows, row_bytes] u8, by ggml_quantize_chunk."""
    rows = np.ascontiguousarray(rows, np.float32)
    n_rows, n_cols = rows.shape
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    out = np.full((n_rows, TYPES[type].row_bytes(n_cols)), 0xA5, np.uint8)
    written = _ggml().ggml_quantize_chunk(
        TYPES[type].id,
        rows.ctypes.data,
        out.ctypes.data,
        0,
        n_rows,
        n_cols,
        None if weights is None else weights.ctypes.data,
    )
    assert written == out.size, (type, written, out.size)
    return out


def dequantize(blocks: np.ndarray, type: str, out: np.ndarray | None = None) -> np.ndarray:
    """blocks [n_rows, row_bytes] u8 → [n_rows, n_cols] f32, by the type's to_float; in the memory `out` if given."""
    row = TYPES[type]
    blocks = np.ascontiguousarray(blocks)
    if out is None:
        out = np.empty((len(blocks), blocks.shape[1] // row.bytes * row.block), np.float32)
    traits = _ggml().ggml_get_type_traits(row.id).contents
    traits.to_float(blocks.ctypes.data, out.ctypes.data, out.size)
    return out


def first_difference(actual: np.ndarray, expected: np.ndarray, type: str) -> str:
    """Empty when all blocks are equal; otherwise how many differ and the first of them, for an assert."""
    size = TYPES[type].bytes
    a, b = actual.reshape(-1, size), expected.reshape(-1, size)
    bad = np.flatnonzero((a != b).any(1))
    if not len(bad):
        return ""
    first = bad[0]
    at = np.flatnonzero(a[first] != b[first])
    return (
        f"{type}: {len(bad)} of {len(a)} blocks differ; block {first}, bytes {at[:8].tolist()}: "
        f"{a[first][at[:8]].tolist()} instead of {b[first][at[:8]].tolist()}"
    )
