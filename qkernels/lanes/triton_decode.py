"""Decoders as Triton kernels: a thread decodes one lane's part of a block, reading and writing memory as it lies."""

from __future__ import annotations

import functools
from typing import Any

import torch

from quantmill.qkernels.lanes.decoder import Decoder
from quantmill.qkernels.lanes.tensors import table_on
from quantmill.qkernels.lanes.triton import current, defined, launch
from quantmill.qkernels.types import QuantType

N_WARPS = 4


def kernel_name(decoder: Decoder) -> str:
    return f"decode_{decoder.function}_kernel"


def _text(type: QuantType, decoder: Decoder) -> str:
    tables = "".join(f"p_{name}, " for name in decoder.tables)
    operands = "".join(f", p_{o}" if isinstance(o, str) else f", {o}" for o in decoder.operands)
    return f"""\
def {kernel_name(decoder)}(p_blocks, p_y, {tables}n: "i64", BLOCK: tl.constexpr):
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = lane < n * {decoder.lanes}
    j = (lane % {decoder.lanes}).to(tl.int32)
    blocks = (p_blocks + lane // {decoder.lanes} * {type.bytes}, 1, live)
    y = (p_y + lane * {type.block // decoder.lanes}, 1, live)
    {decoder.function}(j, blocks, y{operands})
"""


@functools.cache
def kernel_of(type: QuantType, decoder: Decoder) -> Any:
    """The kernel of one decoder: blocks u8, numbers f32, f16 or bf16, tables, the number of blocks."""
    return defined(decoder.module, kernel_name(decoder), _text(type, decoder))


def decode(type: QuantType, decoder: Decoder, blocks: torch.Tensor, out: torch.Tensor) -> None:
    """blocks u8 [n_blocks, bytes] → out f32, f16 or bf16 [n_blocks, block], both contiguous, on one GPU."""
    n = len(blocks)
    tables = [table_on(make, out.device) for make in decoder.tables.values()]
    with current(out.device):
        launch(kernel_of(type, decoder), N_WARPS, n * decoder.lanes, blocks, out, *tables, n)
