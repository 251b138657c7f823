"""Decoders as Metal kernels: a thread decodes one lane's part of a block, reading and writing memory as it lies."""

from __future__ import annotations

import torch

from quantmill.qkernels.lanes.decoder import Decoder
from quantmill.qkernels.lanes.metal import start
from quantmill.qkernels.lanes.metal_source import decode_kernel_name, decoder_source
from quantmill.qkernels.lanes.tensors import table_on
from quantmill.qkernels.types import QuantType

_PLAIN = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def decode(type: QuantType, decoder: Decoder, blocks: torch.Tensor, out: torch.Tensor) -> None:
    """blocks u8 [n_blocks, bytes] → out f32, f16 or bf16 [n_blocks, block], both contiguous, on the GPU.

    Numbers below 2^-126 become zero where the GPU has no sub-normal numbers.
    """
    n = len(blocks)
    tables = [table_on(make, out.device) for make in decoder.tables.values()]
    name = decode_kernel_name(decoder, _PLAIN[out.dtype])
    start(decoder_source(type, decoder), name, n * decoder.lanes, [blocks, out, *tables, [n]])
