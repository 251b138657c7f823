"""Decoders on tensors, on any device torch has: a program runs on all blocks and all their lanes at once."""

from __future__ import annotations

import numpy as np
import torch

from quantmill.qkernels.lanes.decoder import Decoder
from quantmill.qkernels.lanes.tensors import table_on
from quantmill.qkernels.lanes.torch import programs
from quantmill.qkernels.lanes.torch_arrays import Array
from quantmill.qkernels.types import QuantType

# Weights decoded at a time: temporaries stay small beside a GPU's memory.
_CHUNK = 1 << 24


def decode(type: QuantType, decoder: Decoder, blocks: torch.Tensor, out: torch.Tensor) -> None:
    """blocks u8 [n_blocks, bytes] → out f32, f16 or bf16 [n_blocks, block], contiguous, on one device."""
    step = max(1, _CHUNK // type.block)
    for first in range(0, len(blocks), step):
        _decode(type, decoder, blocks[first : first + step], out[first : first + step])


def _decode(type: QuantType, decoder: Decoder, blocks: torch.Tensor, out: torch.Tensor) -> None:
    lanes = decoder.lanes
    # As when encoding, a value is [n_rows, per_row] or [lanes, n_rows, per_row]; here all blocks are one row.
    parts = out.view(len(out), lanes, type.block // lanes).permute(2, 1, 0)[:, :, None]
    y = Array(parts if lanes > 1 else parts[:, 0])
    operands = (
        table_on(decoder.tables[name], out.device) if isinstance(name, str) else name
        for name in decoder.operands
    )
    j = np.arange(lanes) if lanes > 1 else 0
    programs(decoder.module)[decoder.function](j, Array(blocks.t()[:, None]), y, *operands)
