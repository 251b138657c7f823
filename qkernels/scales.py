"""The scales of packed blocks: read, weighed and written, in torch, on any device.

A decoded weight is linear in its block's scales (types.py: `scales`) and in the whole numbers that stand for the scales
of its groups, so what a weight's change does to a model is known of each of them too.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from quantmill.qkernels.lattices.types import LATTICES
from quantmill.qkernels.subscales import sub_scales_of
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


def n_values(type: str, within: bool = True) -> int:
    """How many numbers of a block can be moved: its scales, then, where `within`, the scales of its groups and their
    minimums."""
    sub = sub_scales_of(type) if within else None
    return len(get_type(type).scales) + (0 if sub is None else sub.n * (1 if sub.min_range is None else 2))


def read_scales(blocks: torch.Tensor, type: str, within: bool = True) -> torch.Tensor:
    """What can be moved of blocks [..., row_bytes] u8: [..., n_blocks, n_values] f32."""
    row, sub = get_type(type), sub_scales_of(type) if within else None
    fields = _blocks(blocks, row)
    scales = torch.stack([_read(fields, format, place) for format, place in row.scales], -1)
    return scales if sub is None else torch.cat([scales, sub.read(fields)], -1)


def write_scales(blocks: torch.Tensor, type: str, values: torch.Tensor) -> None:
    """Put values, as `read_scales` gives them, into blocks [..., row_bytes] u8, each the nearest of its format.

    A value beyond the format becomes its largest. Where there are none of the groups, these stay.
    """
    row = get_type(type)
    sub = sub_scales_of(type) if values.shape[-1] > len(row.scales) else None
    fields = _blocks(blocks, row)
    for number, (format, place) in enumerate(row.scales):
        _write(fields, format, place, values[..., number])
    if sub is not None:
        sub.write(fields, values[..., len(row.scales) :])


def group_of(type: str) -> int:
    """How many weights share what can be moved of a block, or more of them."""
    row, sub = get_type(type), sub_scales_of(type)
    return row.block // (sub.n if sub is not None else (len(row.scales) if row.parts else 1))


def gradient(
    blocks: torch.Tensor, type: str, products: torch.Tensor, sums: torch.Tensor, within: bool = True
) -> torch.Tensor:
    """What a relative change of each value does to L: [n_rows, n_blocks, n_values] f32.

    products, sums: of dL/dW with the decoded blocks, and of itself, over every `group_of` columns (pulls.of_groups);
    they may be overwritten.
    """
    row = get_type(type)
    n_groups = row.block // group_of(type)
    rise, fall = products.unflatten(1, (-1, n_groups)), None
    if row.parts:
        return rise
    low = _minimums(blocks, row)
    if low is not None:
        fall = sums.unflatten(1, (-1, n_groups)).mul_(low)
        rise += fall  # the scale's part of a weight is the weight and what was subtracted from it
        fall.neg_()
    kinds = [rise] if fall is None else [rise, fall]
    if n_groups == 1:
        return torch.cat(kinds, -1)
    return torch.cat([kind.sum(-1, keepdim=True) for kind in kinds] + (kinds if within else []), -1)


def _minimums(blocks: torch.Tensor, row: QuantType) -> torch.Tensor | None:
    """What is subtracted from the weights of each group, [..., n_blocks, n_groups]; None where nothing is."""
    if row.name not in LATTICES or not LATTICES[row.name].has_min:
        return None
    values = read_scales(blocks, row.name)
    sub = sub_scales_of(row.name)
    low = LATTICES[row.name].min_sign * values[..., 1:2]
    return low if sub is None else low * values[..., 2 + sub.n :]


def _blocks(blocks: torch.Tensor, row: QuantType) -> torch.Tensor:
    return blocks.unflatten(-1, (blocks.shape[-1] // row.bytes, row.bytes))


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
