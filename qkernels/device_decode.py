"""Blocks to numbers where tensors lie, by the engine of their device."""

from __future__ import annotations

import torch

from quantmill.qkernels.engines import serving
from quantmill.qkernels.types import QuantType

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
        engine = serving(out.device.type)
        engine.load().decode(engine, type, raw, out.view(-1, type.block), to)
    return out
