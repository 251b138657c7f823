"""Arrays as users have them: numpy or torch, of any float type, with leading dimensions, on any device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from quantmill.qkernels import api
from quantmill.qkernels.engines import Engine, choose_engines, serving
from quantmill.qkernels.rows import row_quantizers
from quantmill.qkernels.trust import case_of
from quantmill.qkernels.types import QuantizeError, QuantType, Search, get_search, get_type

# Names of element types, numpy's (ml_dtypes' for the third) and torch's → the ggml type as which they are read.
_STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def quantize_array(
    rows: Any,
    type: str | QuantType,
    importance: Any,
    device: Any,
    threads: int | None,
    search: str = "default",
) -> Any:
    """What quantmill.quantize does: rows [..., n_cols] → u8 [..., row_bytes], each row by itself."""
    target, wanted = get_type(type), get_search(search)
    array = _as_array(rows)
    if not array.ndim or not array.shape[-1]:
        raise QuantizeError(f"rows of shape {list(array.shape)} have no columns; expected [..., n_cols]")
    *outer, n_cols = array.shape
    engine = _engine(device, array)
    if not math.prod(outer):
        return _empty(array, (*outer, target.row_bytes(n_cols)))
    matrices = (
        array.reshape(math.prod(outer[:-1]), -1, n_cols) if len(outer) > 1 else array.reshape(1, -1, n_cols)
    )
    weights = _importance_of(importance, tuple(outer[:-1]), n_cols)
    parts = [
        _quantized(matrix, target, one, engine, threads, wanted)
        for matrix, one in zip(matrices, weights, strict=True)
    ]
    shape = (*outer, target.row_bytes(n_cols))
    if isinstance(array, np.ndarray):
        return np.concatenate(parts).reshape(shape)
    import torch

    return torch.cat(parts).reshape(shape).to(array.device)


def dequantize_array(blocks: Any, type: str | QuantType, device: Any, threads: int | None) -> Any:
    """What quantmill.dequantize does: u8 [..., row_bytes] → f32 [..., n_cols]."""
    source = get_type(type)
    array = np.frombuffer(blocks, np.uint8) if isinstance(blocks, bytes | bytearray | memoryview) else blocks
    engine = _engine(device, array)
    if isinstance(array, np.ndarray):
        if engine.device == "cpu":
            return api.dequantize(array, source.name, threads=threads)
        import torch

        return api.dequantize(torch.tensor(array), source.name, engine.device).cpu().numpy()
    return api.dequantize(array, source.name, engine.device).to(array.device)


def _as_array(rows: Any) -> Any:
    """An array or tensor of F32, F16 or BF16 elements; float64 is rounded to float32, as everything after it is."""
    if not isinstance(rows, np.ndarray) and not hasattr(rows, "detach"):
        rows = np.asarray(rows)  # lists, and whatever gives an array
        if rows.dtype.kind in "iu":
            rows = rows.astype(np.float32)
    if isinstance(rows, np.ndarray):
        rows = rows.astype(rows.dtype.newbyteorder("="), copy=False)
    kind = str(rows.dtype).removeprefix("torch.")
    if kind == "float64":
        return rows.astype(np.float32) if isinstance(rows, np.ndarray) else rows.detach().float()
    if kind not in _STORED:
        raise QuantizeError(f"rows are {kind}; expected float32, float16, bfloat16 or float64")
    return rows if isinstance(rows, np.ndarray) else rows.detach()


def _empty(like: Any, shape: tuple[int, ...]) -> Any:
    return np.empty(shape, np.uint8) if isinstance(like, np.ndarray) else like.new_empty(shape).byte()


def _engine(device: Any, array: Any) -> Engine:
    """The one engine of a device; "auto" leaves a tensor that lies on an accelerator there."""
    name = str(device)
    place = getattr(array, "device", "cpu")
    if name == "auto" and str(getattr(place, "type", place)) != "cpu":
        name = str(place)
    if "," in name:
        raise QuantizeError(f"device {name!r}: arrays are quantized on one device")
    return choose_engines(name)[0]


def _importance_of(importance: Any, outer: tuple[int, ...], n_cols: int) -> Iterator[np.ndarray | None]:
    """A vector f32 [n_cols] for each matrix: one for all, or [..., n_cols] with the rows' leading dimensions."""
    count = math.prod(outer)
    if importance is None:
        yield from [None] * count
        return
    if hasattr(importance, "detach"):
        importance = importance.detach().cpu().float().numpy()
    vectors = np.atleast_1d(np.asarray(importance, np.float32))
    if math.prod(vectors.shape[:-1]) == 1:
        vectors = vectors.reshape(-1)
    if vectors.ndim > 1 and vectors.shape != (*outer, n_cols):
        raise QuantizeError(
            f"importance has shape {list(vectors.shape)}; expected [{n_cols}]"
            + (f" or {[*outer, n_cols]}, a vector for each matrix" if outer else "")
        )
    yield from np.broadcast_to(vectors.reshape(-1, vectors.shape[-1]), (count, vectors.shape[-1]))


def _quantized(
    matrix: Any,
    type: QuantType,
    importance: np.ndarray | None,
    engine: Engine,
    threads: int | None,
    search: Search,
) -> Any:
    """A matrix [n_rows, n_cols] → u8 [n_rows, row_bytes] of the same kind; a tensor's on the engine's device."""
    if not isinstance(matrix, np.ndarray) and engine.row is not serving("cpu"):
        return _on_its_device(matrix.to(engine.device).float(), type, importance, engine, threads, search)
    stored = _STORED[str(matrix.dtype).removeprefix("torch.")]
    (quantizer, *_) = row_quantizers(engine, threads, search)
    raw = quantizer.load(_bytes_of(matrix), stored)
    done = quantizer.quantize(raw, stored, type.name, importance)
    quantizer.finish()
    if isinstance(matrix, np.ndarray):
        return done
    import torch

    return torch.from_numpy(done)


def _on_its_device(
    rows: Any,
    type: QuantType,
    importance: np.ndarray | None,
    engine: Engine,
    threads: int | None,
    search: Search,
) -> Any:
    """Rows f32 stay where they are, and the device is believed as in a job; else the CPU engine does its work."""
    encode: Any = api.quantize  # takes either kind of array
    guard: Any = row_quantizers(engine, threads, search)[0]
    case = case_of(type.name, importance is not None and type.reads_importance(search), search)
    done = guard.beside(
        case,
        type.name,
        rows.shape[1],
        lambda: encode(rows, type.name, importance, engine.name, search=search),
    )
    return encode(rows, type.name, importance, "cpu", threads, search) if done is None else done


def _bytes_of(matrix: Any) -> np.ndarray:
    """[n_rows, n_cols] on any device → u8 [n_rows, n_cols · bytes of an element], contiguous."""
    if isinstance(matrix, np.ndarray):
        return np.ascontiguousarray(matrix).view(np.uint8)
    import torch

    return matrix.cpu().contiguous().view(torch.uint8).numpy()
