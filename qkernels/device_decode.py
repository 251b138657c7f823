"""Blocks to numbers where tensors lie, by the engine of their device, which is compared with the CPU's before it is
believed: once a process for each type of blocks and of numbers."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import torch

from quantmill.qkernels.device_faults import objections_of, reason_of
from quantmill.qkernels.engines import Engine, serving
from quantmill.qkernels.flushing import FLUSHING, risky_blocks
from quantmill.qkernels.guard import first_answer
from quantmill.qkernels.torch_errors import SilentDeviceError, is_out_of_memory
from quantmill.qkernels.types import QuantType

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Blocks of random bytes that are decoded on both.
_BLOCKS = 512
_JUDGE = Engine("cpu", "cpu", "the judge")
_BITS = {4: torch.int32, 2: torch.int16}


def dequantize_tensor(
    blocks: torch.Tensor, type: QuantType, device: torch.device | None, to: str, out: torch.Tensor | None
) -> torch.Tensor:
    """blocks u8 [..., row_bytes] → [..., n_cols] of the type `to` on `device`, by default the blocks' own."""
    *outer, row_bytes = blocks.shape
    if out is None:
        shape = (*outer, row_bytes // type.bytes * type.block)
        out = torch.empty(shape, dtype=DTYPES[to], device=device or blocks.device)
    if type.family == "plain":
        out.copy_(blocks.to(out.device).contiguous().view(DTYPES[type.name]))
    elif out.numel():
        numbers = out.view(-1, type.block)
        if _is_believed(type, str(out.device), to):
            _decode(_engine_at(str(out.device)), type, blocks, numbers, to)
        else:
            numbers.copy_(_by_cpu(type, blocks, to))
    return out


def _engine_at(device: str) -> Engine:
    return Engine(serving(device.partition(":")[0]).name, device, "blocks that are there")


def _decode(engine: Engine, type: QuantType, blocks: torch.Tensor, numbers: torch.Tensor, to: str) -> None:
    raw = blocks.to(numbers.device).reshape(-1, type.bytes).contiguous()
    engine.row.load().decode(engine.row, type, raw, numbers, to)


def _by_cpu(type: QuantType, blocks: torch.Tensor, to: str) -> torch.Tensor:
    """[n_blocks, block] of the type `to`, in the host's memory."""
    numbers = torch.empty((blocks.numel() // type.bytes, type.block), dtype=DTYPES[to], device="cpu")
    _decode(_JUDGE, type, blocks, numbers, to)
    return numbers


@functools.cache
def _is_believed(type: QuantType, device: str, to: str) -> bool:
    """Asked once; a device that is not is told of then."""
    engine = _engine_at(device)
    fault = "" if engine.row is _JUDGE.row else decoding_fault(engine, type, to)
    if fault:
        warnings.warn(f"{fault}; the CPU decodes it", RuntimeWarning, stacklevel=3)
    return not fault


def decoding_fault(engine: Engine, type: QuantType, to: str) -> str:
    """What is wrong with an engine's numbers of the type `to`, of some blocks; "" where they are the CPU's to the bit.

    Blocks of which a device makes zeros because it has no sub-normal numbers do not count. Raises a device's want of
    memory, and SilentDeviceError for one that hangs: what the CPU decodes could not reach it either.
    """
    rng = np.random.default_rng(type.bytes)
    blocks = torch.from_numpy(rng.integers(0, 256, (_BLOCKS, type.bytes), np.uint8))
    flushed = risky_blocks(blocks, type) if engine.kind in FLUSHING else None
    expected = _by_cpu(type, blocks, to)

    def decoded() -> torch.Tensor:
        there = torch.empty_like(expected, device=engine.device)
        _decode(engine, type, blocks, there, to)
        return there.cpu()

    try:
        found = first_answer(engine.device, f"which was to decode {type.name}", decoded)
    except SilentDeviceError:
        raise
    except objections_of(engine) as error:
        if is_out_of_memory(error):
            raise
        return f"{type.name} is not decoded on {engine.device} ({reason_of(error)})"
    bits = _BITS[found.element_size()]
    wrong = (found.view(bits) != expected.view(bits)) & ~(found.isnan() & expected.isnan())
    if flushed is not None:
        wrong[flushed] = False
    if not wrong.any():
        return ""
    n_wrong, n = int(wrong.any(1).sum()), len(wrong)
    return f"{type.name} on {engine.device}: {n_wrong} of {n} blocks decoded to {to} are not the CPU's"
