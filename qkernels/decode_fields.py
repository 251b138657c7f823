"""Reading the fields of packed blocks in torch: codes, scales and signs out of bytes.

Only integers of 8, 16 and 32 bits and float32 are used, which every torch device has.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import torch

Fields = Mapping[str, torch.Tensor]  # field name -> [n, bytes] u8


def spread(field: torch.Tensor, group: int, bits: int) -> torch.Tensor:
    """[n, m] bytes → [n, m * 8 / bits] codes.

    Every `group` bytes hold 8 / bits runs of `group` codes, the first run in the lowest bits.
    """
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=field.device).view(1, 1, -1, 1)
    runs = field.reshape(len(field), -1, 1, group) >> shifts
    return (runs & ((1 << bits) - 1)).reshape(len(field), -1)


def half(field: torch.Tensor) -> torch.Tensor:
    """[n, 2 k] bytes → [n, k] f32, read as binary16."""
    return field.contiguous().view(torch.float16).float()


def words(field: torch.Tensor) -> torch.Tensor:
    """[n, 2 k] bytes → [n, k] i32, read as unsigned 16-bit numbers."""
    return field.contiguous().view(torch.int16).int() & 0xFFFF


def times(scales: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """scales [n, k] f32 times values [n, m]: each scale serves m / k neighbouring values; [n, m] f32."""
    n, k = scales.shape
    return (values.view(n, k, -1).float() * scales[:, :, None]).view(n, -1)


def minus(values: torch.Tensor, mins: torch.Tensor) -> torch.Tensor:
    n, k = mins.shape
    return values.view(n, k, -1).sub_(mins[:, :, None]).view(n, -1)


@functools.cache
def table(kind: str, device: torch.device) -> torch.Tensor:
    """Small decoding tables, [16] or [256] f32: the values of codes or of scale bytes."""
    byte = np.arange(256)
    exponent, mantissa = byte >> 3 & 15, byte & 7
    ue4m3 = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0)) / 2
    tables = {
        "fp4": np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]),  # twice the E2M1 value
        "e8m0": np.ldexp(1.0, byte - 128),  # half of E8M0, because the codes are doubled
        "ue4m3": np.where(byte == 0x7F, 0, ue4m3),
        "iq4": np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]),
    }
    return torch.tensor(tables[kind].astype(np.float32), device=device)


def look_up(table: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """table [entries] or [entries, dim], codes [n, k] → [n, k] or [n, k * dim] f32."""
    return table.index_select(0, codes.reshape(-1).int()).view(len(codes), -1)
