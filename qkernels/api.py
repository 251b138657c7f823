"""quantize() and to_float32(): the checks, and the way to an engine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from quantmill.qkernels import plain
from quantmill.qkernels.types import QuantizeError, QuantType, get_type

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", np.ndarray, "torch.Tensor")


def quantize(
    rows: Array,
    type: str,
    importance: Array | None = None,
    engine: str = "cpu",
    threads: int | None = None,
) -> Array:
    """rows f32 [n_rows, n_cols], importance f32 [n_cols] or None → u8 [n_rows, row_bytes], the bytes of llama.cpp.

    numpy in, numpy out; tensor in, tensor out on the same device. `engine`: "cpu" (LLVM), "torch" (any device; the
    tensor's own) or "triton" (CUDA, ROCm). `threads`: of the cpu engine, all cores by default. None of them changes
    the bytes. Types that ignore importance accept it.
    Raises QuantizeError for an unknown type or engine, a row that is not whole blocks, missing importance, importance
    of another length, NaN or infinity in either, and weights too large for the type's scales.
    (ggml.c: ggml_quantize_chunk.)
    """
    row = get_type(type)
    _check_shapes(rows, row, importance)
    if engine == "cpu":
        return _on_cpu(rows, row, importance, threads)
    if engine in ("torch", "triton"):
        from quantmill.qkernels.device import quantize_tensor

        return quantize_tensor(rows, row, importance, engine)
    raise QuantizeError(f"unknown engine {engine!r}; engines: cpu, torch, triton")


def quantize_stored(
    raw: np.ndarray, source_type: str, type: str, importance: np.ndarray | None, threads: int | None = None
) -> np.ndarray:
    """Stored rows u8 [n_rows, row_bytes] in F32, F16 or BF16 → u8 [n_rows, row_bytes] of `type`, on the CPU.

    `quantize` of the same rows as float32, without making them: each thread widens the weights that it searches.
    Raises QuantizeError as `quantize` does.
    """
    source, row = get_type(source_type), get_type(type)
    if source.name == "F32" or row.family == "plain":
        return quantize(to_float32(raw, source_type), type, importance, "cpu", threads)
    rows = raw.view("<u2")
    _check_columns(rows.shape[1], row, importance)
    return _on_cpu(rows, row, importance, threads, source.name)


def to_float32(raw: np.ndarray, type: str) -> np.ndarray:
    """Stored rows u8 [n_rows, row_bytes] of any type → f32 [n_rows, n_cols].

    F32, F16 and BF16 are decoded by numpy; quantized types need torch, which is imported then.
    """
    row = get_type(type)
    if row.family == "plain":
        return plain.widen(raw, row)
    from quantmill.qkernels.decode import dequantize

    return dequantize(raw, type)  # type: ignore[return-value]


def _check_shapes(rows: Array, type: QuantType, importance: Array | None) -> None:
    if str(rows.dtype).removeprefix("torch.") != "float32" or rows.ndim != 2:
        raise QuantizeError(f"rows must be float32 [n_rows, n_cols], not {rows.dtype} {list(rows.shape)}")
    _check_columns(rows.shape[1], type, importance)


def _check_columns(n_cols: int, type: QuantType, importance: Array | None) -> None:
    if not n_cols or n_cols % type.block:
        raise QuantizeError(f"{n_cols} columns, {type.name} needs a multiple of {type.block}")
    if importance is None:
        if type.importance == "required":
            raise QuantizeError(
                f"{type.name} needs importance (an imatrix); choose another type or collect one"
            )
    elif tuple(importance.shape) != (n_cols,):
        raise QuantizeError(f"importance has shape {list(importance.shape)}, the rows have {n_cols} columns")


def _on_cpu(
    rows: Array, type: QuantType, importance: Array | None, threads: int | None, stored: str = "F32"
) -> Array:
    if not isinstance(rows, np.ndarray):
        import torch

        weights = None if importance is None else importance.cpu().numpy()
        done = _on_cpu(rows.cpu().numpy(), type, weights, threads)
        return torch.from_numpy(done).to(rows.device)
    if type.family == "plain":
        plain.require_finite(rows, "weights")
        out = plain.narrow(np.ascontiguousarray(rows), type)
    else:
        from quantmill.qkernels.encoders import encoder_of
        from quantmill.qkernels.lanes import cpu

        weights = None
        if importance is not None and type.importance != "none":
            weights = np.ascontiguousarray(importance, np.float32)
            plain.require_finite(weights.reshape(1, -1), "importance")
        encoder = encoder_of(type.name, weights is not None)
        out = cpu.encode(type, encoder, rows, weights, threads or os.cpu_count() or 1, stored)
    plain.require_finite_scales(out, type)
    return out
