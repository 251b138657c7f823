"""The scales of packed blocks: read, weigh, move and write them, in torch, on any device.

A decoded weight is linear in its block's scales (types.py: `scales`), so what a weight's change does to a model is
known of a scale too: with ε the relative change of a scale, dL/dε is the sum over its weights of dL/dW times the part
of the weight that this scale makes.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from quantmill.qkernels.api import dequantize
from quantmill.qkernels.types import QuantType, get_type

CONTINUOUS = ("f16", "f16 in nibbles")  # formats so fine that a scale can be moved as a real number
_LARGEST_HALF = 65504.0


def is_trainable(type: str) -> bool:
    """Whether a block of this type keeps scales that can be moved."""
    row = get_type(type)
    return row.family != "plain" and bool(row.scales)


def is_continuous(type: str) -> bool:
    """Whether its scales move nearly freely; E8M0 and E4M3 scales have a coarse grid of their own."""
    row = get_type(type)
    return is_trainable(type) and all(format in CONTINUOUS for format, _ in row.scales)


def parts(blocks: torch.Tensor, type: str, first: int = 0) -> list[torch.Tensor]:
    """What each scale from `first` on makes of blocks [..., row_bytes] u8: tensors [..., n_cols] f32.

    All of them add up to the decoded weight. One tensor for a type whose scales serve shares of the block in turn.
    """
    row = get_type(type)
    if len(row.scales) == 1 or row.parts:
        return [dequantize(blocks, type)]
    fields = _blocks(blocks, row)
    out = []
    for kept in range(first, len(row.scales)):
        alone = fields.clone()
        for number, (format, place) in enumerate(row.scales):
            assert format == "f16"
            if number != kept:
                alone[..., place : place + 2] = 0
        out.append(dequantize(alone.view(blocks.shape), type))
    return out


def scaled(blocks: torch.Tensor, type: str, change: torch.Tensor) -> torch.Tensor:
    """Decoded weights [..., n_cols] f32 with every scale times 1 + change; change [..., n_blocks, n_scales] f32."""
    row = get_type(type)
    out = None
    for number, part in enumerate(parts(blocks, type)):
        factor = 1 + (change if row.parts else change[..., number : number + 1])
        part = part.view(*factor.shape, -1).mul_(factor.unsqueeze(-1))
        out = part if out is None else out.add_(part)
    assert out is not None
    return out.view(*blocks.shape[:-1], -1)


def gradient(
    blocks: torch.Tensor, type: str, change: torch.Tensor, made: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """dL/dW [..., n_cols] f32 → dL/dchange [..., n_blocks, n_scales] f32.

    made: what `scaled` gave for blocks and change, in any dtype. weights: overwritten.
    """
    row = get_type(type)
    shape = (*change.shape, -1) if row.parts else (*change.shape[:-1], 1, -1)
    # The parts that only the last scales make are decoded; the first scale's is what remains of the whole.
    others = [] if len(row.scales) == 1 or row.parts else parts(blocks, type, 1)
    sums = [(part.mul_(weights)).view(shape).sum(-1) for part in others]
    first = weights.mul_(made).view(shape).sum(-1)
    for number, one in enumerate(sums, 1):
        first -= one * (1 + change[..., number : number + 1])
    factor = 1 + (change if row.parts else change[..., :1])
    return torch.cat([first / factor, *sums], -1)


def read_scales(blocks: torch.Tensor, type: str) -> torch.Tensor:
    """The scales of blocks [..., row_bytes] u8: [..., n_blocks, n_scales] f32."""
    row = get_type(type)
    fields = _blocks(blocks, row)
    return torch.stack([_read(fields, format, place) for format, place in row.scales], -1)


def write_scales(blocks: torch.Tensor, type: str, values: torch.Tensor) -> torch.Tensor:
    """A copy of blocks [..., row_bytes] u8 with the scales [..., n_blocks, n_scales] f32, each to the nearest of its
    format. A scale beyond the format becomes its largest; one that was zero stays zero."""
    row = get_type(type)
    fields = _blocks(blocks, row).clone()
    for number, (format, place) in enumerate(row.scales):
        old = _read(fields, format, place)
        _write(fields, format, place, torch.where(old == 0, old, values[..., number].to(fields.device)))
    return fields.view(blocks.shape)


def _blocks(blocks: torch.Tensor, row: QuantType) -> torch.Tensor:
    return blocks.reshape(*blocks.shape[:-1], blocks.shape[-1] // row.bytes, row.bytes)


def _read(fields: torch.Tensor, format: str, place: int) -> torch.Tensor:
    if format == "f16":
        return fields[..., place : place + 2].contiguous().view(torch.float16).float().squeeze(-1)
    if format == "f16 in nibbles":
        return _from_nibbles(fields, place)
    return grid(format, fields.device)[fields[..., place].int()]


def _write(fields: torch.Tensor, format: str, place: int, values: torch.Tensor) -> None:
    """Into fields, in place."""
    if format in CONTINUOUS:
        half = values.clamp(-_LARGEST_HALF, _LARGEST_HALF).half().unsqueeze(-1)
        if format == "f16":
            fields[..., place : place + 2] = half.view(torch.uint8)
        else:
            _to_nibbles(fields, place, half.view(torch.uint8))
        return
    # The grids are monotonic in the byte: 254 of E8M0's numbers, 126 of E4M3's, zero left out of both.
    last = 254 if format == "e8m0" else 126
    known = grid(format, fields.device)[: last + 1]
    above = torch.searchsorted(known, values.contiguous()).clamp(1, last)
    below = above - 1
    nearest = torch.where(values - known[below] < known[above] - values, below, above)
    old = fields[..., place]
    fields[..., place] = torch.where(values > 0, nearest.clamp_min(int(known[0] == 0)).to(torch.uint8), old)


@functools.cache
def grid(format: str, device: torch.device) -> torch.Tensor:
    """What each byte of an E8M0 or E4M3 scale means, [256] f32, times ½ as its types take it (their codes are doubled).

    E8M0: 2^(byte − 127). E4M3: the sign is ignored, and all bits below it mean none (ggml-impl.h: ggml_ue4m3_to_fp32).
    """
    byte = np.arange(256)
    if format == "e8m0":
        values = np.ldexp(1.0, byte - 128)
    else:
        exponent, mantissa = byte >> 3 & 15, byte & 7
        values = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0)) / 2
        values = np.where(byte & 127 == 127, 0, values)
    return torch.tensor(values.astype(np.float32), device=device)


def _from_nibbles(fields: torch.Tensor, place: int) -> torch.Tensor:
    """IQ1_M: the high nibble of each of four 16-bit words, the first lowest."""
    high = fields[..., place + 1 : place + 8 : 2] >> 4
    low_byte, high_byte = high[..., 0] | (high[..., 1] << 4), high[..., 2] | (high[..., 3] << 4)
    return torch.stack([low_byte, high_byte], -1).contiguous().view(torch.float16).float().squeeze(-1)


def _to_nibbles(fields: torch.Tensor, place: int, half: torch.Tensor) -> None:
    nibbles = (half[..., 0] & 15, half[..., 0] >> 4, half[..., 1] & 15, half[..., 1] >> 4)
    for word, nibble in enumerate(nibbles):
        at = place + 2 * word + 1
        fields[..., at] = (fields[..., at] & 15) | (nibble << 4)
