"""quantize() and dequantize(): the checks, and the way to an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from quantmill.qkernels import plain
from quantmill.qkernels.checks import checked_importance
from quantmill.qkernels.engines import engine_row
from quantmill.qkernels.types import QuantizeError, get_search, get_type, readable_type

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", np.ndarray, "torch.Tensor")


def quantize(
    rows: Array,
    type: str,
    importance: Array | None = None,
    engine: str = "cpu",
    threads: int | None = None,
    search: str = "default",
) -> Array:
    """rows f32 [n_rows, n_cols], importance f32 [n_cols] or None → u8 [n_rows, row_bytes], the bytes of llama.cpp.

    numpy in, numpy out; tensor in, tensor out on the same device. `engine`: "cpu" (LLVM), "torch" (any device; the
    tensor's own) or "triton" (CUDA, ROCm). `threads`: of the cpu engine, all cores by default. None of them changes
    the bytes. Types that ignore importance accept it. `search`: "thorough" goes on from llama.cpp's blocks to such with
    a smaller Σ importance·(row - decoded)², where the type has such a search.
    Raises QuantizeError for an unknown type, engine or search, a row that is not whole blocks, missing importance,
    importance of another length, NaN or infinity in either, and weights too large for the type's scales.
    (ggml.c: ggml_quantize_chunk.)
    """
    row, way = get_type(type), engine_row(engine)
    if str(rows.dtype).removeprefix("torch.") != "float32" or rows.ndim != 2:
        raise QuantizeError(f"rows must be float32 [n_rows, n_cols], not {rows.dtype} {list(rows.shape)}")
    columns = (
        importance if importance is None or isinstance(importance, np.ndarray) else importance.cpu().numpy()
    )
    wanted = get_search(search)
    checked = checked_importance(columns, rows.shape[1], row, wanted)
    return way.load().quantize(way, rows, row, checked, threads, wanted)


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
    row = readable_type(type)
    if str(blocks.dtype).removeprefix("torch.") != "uint8":
        raise QuantizeError(f"{row.name} blocks must be uint8, not {blocks.dtype}")
    if not blocks.ndim or blocks.shape[-1] % row.bytes:
        raise QuantizeError(
            f"a row of {row.name} must be whole blocks of {row.bytes} bytes, got {blocks.shape}"
        )
    if to not in plain.ELEMENTS:
        raise QuantizeError(f"cannot decode to {to!r}; choose {', '.join(plain.ELEMENTS)}")
    if isinstance(blocks, np.ndarray):
        from quantmill.qkernels import cpu_engine

        return cpu_engine.dequantize(blocks, row, to, out, threads)
    import torch

    from quantmill.qkernels.device_decode import dequantize_tensor

    return dequantize_tensor(blocks, row, None if device is None else torch.device(device), to, out)


def to_float32(raw: np.ndarray, type: str) -> np.ndarray:
    """Stored rows u8 [n_rows, row_bytes] of any type → f32 [n_rows, n_cols]; rows in F32 are seen, not copied."""
    row = readable_type(type)
    return raw.view(plain.ELEMENTS["F32"]) if row.name == "F32" else dequantize(raw, type)
