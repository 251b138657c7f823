"""quantize() and dequantize(): the checks, and the way to an engine."""

from __future__ import annotations

import math
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
    """Stored rows u8 [n_rows, row_bytes] of any type → u8 [n_rows, row_bytes] of `type`, on the CPU.

    `quantize` of the same rows as float32, without making them: each thread widens or decodes what it searches.
    Raises QuantizeError as `quantize` does.
    """
    source, row = get_type(source_type), get_type(type)
    if row.family == "plain" and source.family != "plain":
        return _decoded_rows(raw, source, row, threads)
    if source.name == "F32" or row.family == "plain":
        return quantize(to_float32(raw, source_type), type, importance, "cpu", threads)
    _check_columns(raw.shape[1] // source.bytes * source.block, row, importance)
    if source.family == "plain":
        return _on_cpu(raw.view("<u2"), row, importance, threads, source.name)
    return _requantized(raw, source, row, importance, threads)


def _decoded_rows(raw: np.ndarray, source: QuantType, type: QuantType, threads: int | None) -> np.ndarray:
    out = dequantize(raw, source.name, to=type.name, threads=threads).view(np.uint8)
    if not plain.all_finite(out, type):
        plain.require_finite(to_float32(raw, source.name), "weights")
        plain.require_finite_scales(out, type)
    return out


def _requantized(
    raw: np.ndarray, source: QuantType, type: QuantType, importance: np.ndarray | None, threads: int | None
) -> np.ndarray:
    from quantmill.qkernels.decoders import decoders
    from quantmill.qkernels.encoders import encoder_of
    from quantmill.qkernels.lanes.cpu_requantize import requantize

    weights = _weights(importance, type)
    steps = decoders()[source.name], encoder_of(type.name, weights is not None)
    out = requantize(source, steps[0], type, steps[1], raw, weights, threads or os.cpu_count() or 1)
    if out is None:
        plain.require_finite(to_float32(raw, source.name), "weights")
    assert out is not None
    plain.require_finite_scales(out, type)
    return out


def _weights(importance: np.ndarray | None, type: QuantType) -> np.ndarray | None:
    """Importance as the CPU engine takes it; None for types that have no use for it."""
    if importance is None or type.importance == "none":
        return None
    weights = np.ascontiguousarray(importance, np.float32)
    plain.require_finite(weights.reshape(1, -1), "importance")
    return weights


def dequantize(
    blocks: Array,
    type: str,
    device: torch.device | str | None = None,
    to: str = "F32",
    out: Array | None = None,
    threads: int | None = None,
) -> Array:
    """blocks u8 [..., row_bytes] → numbers [..., n_cols], as ggml's to_float decodes them; numpy in, numpy out.

    `to`: "F32", or "F16" or "BF16", the nearest (bfloat16 is uint16 bits in numpy). `device`: where to decode and leave
    a tensor; by default where the blocks are. `out`: contiguous memory of the result's shape and type to write to.
    `threads`: for numpy, all cores by default; tensors on the CPU take torch's number. None of them changes a bit.
    Raises QuantizeError for an unknown type, blocks that are not bytes, a row that ends inside a block.
    """
    row = get_type(type)
    if str(blocks.dtype).removeprefix("torch.") != "uint8":
        raise QuantizeError(f"{row.name} blocks must be uint8, not {blocks.dtype}")
    if not blocks.ndim or blocks.shape[-1] % row.bytes:
        raise QuantizeError(
            f"a row of {row.name} must be whole blocks of {row.bytes} bytes, got {blocks.shape}"
        )
    if to not in plain.ELEMENTS:
        raise QuantizeError(f"cannot decode to {to!r}; choose {', '.join(plain.ELEMENTS)}")
    if isinstance(blocks, np.ndarray):
        return _dequantize_array(blocks, row, to, out, threads)
    import torch

    from quantmill.qkernels.device_decode import dequantize_tensor

    return dequantize_tensor(blocks, row, None if device is None else torch.device(device), to, out)


def _dequantize_array(
    blocks: np.ndarray, type: QuantType, to: str, out: np.ndarray | None, threads: int | None
) -> np.ndarray:
    *outer, row_bytes = blocks.shape
    shape = (*outer, row_bytes // type.bytes * type.block)
    if out is None:
        out = np.empty(shape, plain.ELEMENTS[to])
    assert (out.shape, out.dtype) == (shape, plain.ELEMENTS[to])
    assert out.flags.c_contiguous
    if type.family == "plain":
        numbers = plain.widen(np.ascontiguousarray(blocks), type)
        out[...] = plain.narrow(numbers, get_type(to)).view(out.dtype)
        return out
    from quantmill.qkernels.decoders import decoders
    from quantmill.qkernels.lanes import cpu_decode

    raw = np.ascontiguousarray(blocks).reshape(math.prod(blocks.shape) // type.bytes, type.bytes)
    numbers = out.reshape(len(raw), type.block)
    cpu_decode.decode(type, decoders()[type.name], raw, numbers, to, threads or os.cpu_count() or 1)
    return out


def to_float32(raw: np.ndarray, type: str) -> np.ndarray:
    """Stored rows u8 [n_rows, row_bytes] of any type → f32 [n_rows, n_cols]; rows in F32 are seen, not copied."""
    row = get_type(type)
    return plain.widen(raw, row) if row.family == "plain" else dequantize(raw, type)


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

        weights = _weights(importance, type)
        encoder = encoder_of(type.name, weights is not None)
        out = cpu.encode(type, encoder, rows, weights, threads or os.cpu_count() or 1, stored)
    plain.require_finite_scales(out, type)
    return out
