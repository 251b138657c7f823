"""Blocks to numbers where tensors lie: on the CPU by its own engine, on a device by Triton or torch."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import numpy as np
import torch

from quantmill.qkernels.decoders import decoders
from quantmill.qkernels.types import QuantType

# Weights decoded at a time by torch operations: temporaries stay small beside a GPU's memory.
_CHUNK = 1 << 24
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def dequantize_tensor(
    blocks: torch.Tensor, type: QuantType, device: torch.device | None, to: str, out: torch.Tensor | None
) -> torch.Tensor:
    """blocks u8 [..., row_bytes] → [..., n_cols] of the type `to` on `device`, by default the blocks' own."""
    *outer, row_bytes = blocks.shape
    if out is None:
        shape = (*outer, row_bytes // type.bytes * type.block)
        out = torch.empty(shape, dtype=DTYPES[to], device=device or blocks.device)
    blocks = blocks.to(out.device)
    if type.family == "plain":
        out.copy_(blocks.contiguous().view(DTYPES[type.name]))
    elif out.numel():
        raw = blocks.reshape(-1, type.bytes).contiguous()
        _decode(type, raw, out.view(-1, type.block), to)
    return out


def _decode(type: QuantType, raw: torch.Tensor, numbers: torch.Tensor, to: str) -> None:
    decoder = decoders()[type.name]
    if numbers.device.type == "cpu":
        from quantmill.qkernels.lanes import cpu_decode

        words = numbers.view(torch.int16) if to == "BF16" else numbers
        cpu_decode.decode(type, decoder, raw.numpy(), _array(words), to, torch.get_num_threads())
        return
    if numbers.device.type in ("cuda", "xpu") and _has_triton():
        from quantmill.qkernels.lanes import triton_decode

        triton_decode.decode(type, decoder, raw, numbers)
        return
    from quantmill.qkernels.lanes import torch_decode

    step = max(1, _CHUNK // type.block)
    for first in range(0, len(raw), step):
        torch_decode.decode(type, decoder, raw[first : first + step], numbers[first : first + step])


def _array(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's own memory."""
    array: Any = tensor.detach().numpy()
    return array


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
