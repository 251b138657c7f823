"""Blocks → float32 in torch, for every ggml type, on any device (ggml-quants.c: dequantize_row_*).

Each decoder gets the fields of n blocks as bytes and returns [n, block] f32; every product and sum is rounded
in the order of the C code, so values equal ggml's bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import overload

import numpy as np
import torch

from . import decode_iq
from .decode_fields import Fields, half, look_up, minus, spread, table, times, words
from .types import QuantizeError, get_type

# Weights decoded at a time: temporaries stay in a CPU's cache, or small beside a GPU's memory.
_CHUNK = {"cpu": 1 << 18}
_CHUNK_ON_DEVICE = 1 << 24


@overload
def dequantize(blocks: torch.Tensor, type: str, device: torch.device | str | None = None) -> torch.Tensor: ...
@overload
def dequantize(blocks: np.ndarray, type: str, device: torch.device | str | None = None) -> np.ndarray: ...
def dequantize(
    blocks: torch.Tensor | np.ndarray, type: str, device: torch.device | str | None = None
) -> torch.Tensor | np.ndarray:
    """Decode blocks [..., row_bytes] u8 to [..., n_cols] f32; numpy in, numpy out.

    `device`: where to decode and leave a tensor; by default where the blocks are.
    Raises QuantizeError for an unknown type, blocks that are not bytes, a row that ends inside a block.
    """
    row = get_type(type)
    if str(blocks.dtype).removeprefix("torch.") != "uint8":
        raise QuantizeError(f"{row.name} blocks must be uint8, not {blocks.dtype}")
    if not blocks.ndim or blocks.shape[-1] % row.bytes:
        raise QuantizeError(
            f"a row of {row.name} must be whole blocks of {row.bytes} bytes, got {blocks.shape}"
        )
    *outer, row_bytes = blocks.shape
    n_blocks = math.prod(blocks.shape) // row.bytes
    raw = blocks.reshape(n_blocks, row.bytes)
    if device is None:
        device = blocks.device if isinstance(blocks, torch.Tensor) else "cpu"
    out = torch.empty((n_blocks, row.block), dtype=torch.float32, device=device)
    step = max(1, _CHUNK.get(out.device.type, _CHUNK_ON_DEVICE) // row.block)
    for first in range(0, n_blocks, step):
        part = raw[first : first + step]
        # torch.tensor copies: a memory-mapped array is read-only, which from_numpy would warn about
        part = part.to(device) if isinstance(part, torch.Tensor) else torch.tensor(part, device=device)
        out[first : first + step] = _decode(row.name, part)
    out = out.view(*outer, row_bytes // row.bytes * row.block)
    return out if isinstance(blocks, torch.Tensor) else out.cpu().numpy()


def _decode(name: str, raw: torch.Tensor) -> torch.Tensor:
    layout, decoder = DECODERS[name]
    fields = dict(zip(layout, raw.split(list(layout.values()), dim=1), strict=True))
    return decoder(fields)


def _q4_0(f: Fields) -> torch.Tensor:
    return times(half(f["d"]), spread(f["qs"], 16, 4).view(torch.int8) - 8)


def _q4_1(f: Fields) -> torch.Tensor:
    return times(half(f["d"]), spread(f["qs"], 16, 4)).add_(half(f["m"]))


def _five_bits(f: Fields) -> torch.Tensor:
    return spread(f["qs"], 16, 4) | (spread(f["qh"], 1, 1) << 4)


def _q5_0(f: Fields) -> torch.Tensor:
    return times(half(f["d"]), _five_bits(f).view(torch.int8) - 16)


def _q5_1(f: Fields) -> torch.Tensor:
    return times(half(f["d"]), _five_bits(f)).add_(half(f["m"]))


def _q8_0(f: Fields) -> torch.Tensor:
    return times(half(f["d"]), f["qs"].view(torch.int8))


def _q1_0(f: Fields) -> torch.Tensor:
    d = half(f["d"])
    return torch.where(spread(f["qs"], 1, 1) != 0, d, -d)


def _q2_0(f: Fields) -> torch.Tensor:
    return times(half(f["d"]), spread(f["qs"], 1, 2).view(torch.int8) - 1)


def _tq1_0(f: Fields) -> torch.Tensor:
    """A byte is five trits as a fraction of 256: times 3^k modulo 256, trit k is the carry of times 3."""
    n = len(f["qs"])
    powers = torch.tensor([1, 3, 9, 27, 81], dtype=torch.uint8, device=f["qs"].device).view(1, 5, 1)
    parts = ((f["qs"][:, :32], 5), (f["qs"][:, 32:], 5), (f["qh"], 4))
    trits = torch.cat([(part[:, None, :] * powers[:, :k]).view(n, -1) for part, k in parts], 1)
    return times(half(f["d"]), (trits.int() * 3 >> 8) - 1)


def _tq2_0(f: Fields) -> torch.Tensor:
    return times(half(f["d"]), spread(f["qs"], 32, 2).view(torch.int8) - 1)


def _mxfp4(f: Fields) -> torch.Tensor:
    device = f["qs"].device
    scale = look_up(table("e8m0", device), f["e"])
    return times(scale, look_up(table("fp4", device), spread(f["qs"], 16, 4)))


def _nvfp4(f: Fields) -> torch.Tensor:
    device = f["qs"].device
    scale = look_up(table("ue4m3", device), f["d"])
    return times(scale, look_up(table("fp4", device), spread(f["qs"], 8, 4)))


def _q2_k(f: Fields) -> torch.Tensor:
    scales = half(f["d"]) * (f["scales"] & 15)
    return minus(times(scales, spread(f["qs"], 32, 2)), half(f["dmin"]) * (f["scales"] >> 4))


def _q3_k(f: Fields) -> torch.Tensor:
    scales = spread(f["scales"][:, :8], 8, 4) | (spread(f["scales"][:, 8:], 4, 2) << 4)
    codes = spread(f["qs"], 32, 2) | (spread(f["hmask"], 32, 1) << 2)
    return times(half(f["d"]) * (scales.view(torch.int8) - 32), codes.view(torch.int8) - 4)


def _six_bit_scales(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[n, 12] bytes → scales, mins [n, 8] u8: four of each in six bits, the other four in pieces."""
    low, mid, high = packed.split(4, dim=1)
    scales = torch.cat([low & 63, (high & 15) | (low >> 6 << 4)], 1)
    mins = torch.cat([mid & 63, (high >> 4) | (mid >> 6 << 4)], 1)
    return scales, mins


def _scale_min(f: Fields, codes: torch.Tensor) -> torch.Tensor:
    scales, mins = _six_bit_scales(f["scales"])
    return minus(times(half(f["d"]) * scales, codes), half(f["dmin"]) * mins)


def _q4_k(f: Fields) -> torch.Tensor:
    return _scale_min(f, spread(f["qs"], 32, 4))


def _q5_k(f: Fields) -> torch.Tensor:
    return _scale_min(f, spread(f["qs"], 32, 4) | (spread(f["qh"], 32, 1) << 4))


def _q6_k(f: Fields) -> torch.Tensor:
    codes = spread(f["ql"], 64, 4) | (spread(f["qh"], 32, 2) << 4)
    return times(half(f["d"]) * f["scales"].view(torch.int8), codes.view(torch.int8) - 32)


def _f32(f: Fields) -> torch.Tensor:
    return f["x"].contiguous().view(torch.float32)


def _f16(f: Fields) -> torch.Tensor:
    return half(f["x"])


def _bf16(f: Fields) -> torch.Tensor:
    return (words(f["x"]) << 16).view(torch.float32)


# Type -> the fields of a block in order (name: bytes), and what decodes them. ggml-common.h: block_*
DECODERS: Mapping[str, tuple[dict[str, int], Callable[[Fields], torch.Tensor]]] = MappingProxyType(
    {
        "F32": ({"x": 4}, _f32),
        "F16": ({"x": 2}, _f16),
        "BF16": ({"x": 2}, _bf16),
        "Q4_0": ({"d": 2, "qs": 16}, _q4_0),
        "Q4_1": ({"d": 2, "m": 2, "qs": 16}, _q4_1),
        "Q5_0": ({"d": 2, "qh": 4, "qs": 16}, _q5_0),
        "Q5_1": ({"d": 2, "m": 2, "qh": 4, "qs": 16}, _q5_1),
        "Q8_0": ({"d": 2, "qs": 32}, _q8_0),
        "Q2_K": ({"scales": 16, "qs": 64, "d": 2, "dmin": 2}, _q2_k),
        "Q3_K": ({"hmask": 32, "qs": 64, "scales": 12, "d": 2}, _q3_k),
        "Q4_K": ({"d": 2, "dmin": 2, "scales": 12, "qs": 128}, _q4_k),
        "Q5_K": ({"d": 2, "dmin": 2, "scales": 12, "qh": 32, "qs": 128}, _q5_k),
        "Q6_K": ({"ql": 128, "qh": 64, "scales": 16, "d": 2}, _q6_k),
        "IQ2_XXS": ({"d": 2, "qs": 64}, decode_iq.iq2_xxs),
        "IQ2_XS": ({"d": 2, "qs": 64, "scales": 8}, decode_iq.iq2_xs),
        "IQ2_S": ({"d": 2, "qs": 32, "signs": 32, "qh": 8, "scales": 8}, decode_iq.iq2_s),
        "IQ3_XXS": ({"d": 2, "qs": 64, "signs": 32}, decode_iq.iq3_xxs),
        "IQ3_S": ({"d": 2, "qs": 64, "qh": 8, "signs": 32, "scales": 4}, decode_iq.iq3_s),
        "IQ1_S": ({"d": 2, "qs": 32, "qh": 16}, decode_iq.iq1_s),
        "IQ1_M": ({"qs": 32, "qh": 16, "scales": 8}, decode_iq.iq1_m),
        "IQ4_NL": ({"d": 2, "qs": 16}, decode_iq.iq4_nl),
        "IQ4_XS": ({"d": 2, "scales_h": 2, "scales_l": 4, "qs": 128}, decode_iq.iq4_xs),
        "TQ1_0": ({"qs": 48, "qh": 4, "d": 2}, _tq1_0),
        "TQ2_0": ({"qs": 64, "d": 2}, _tq2_0),
        "MXFP4": ({"e": 1, "qs": 16}, _mxfp4),
        "NVFP4": ({"d": 4, "qs": 32}, _nvfp4),
        "Q1_0": ({"d": 2, "qs": 16}, _q1_0),
        "Q2_0": ({"d": 2, "qs": 16}, _q2_0),
    }
)
