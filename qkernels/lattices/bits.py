"""Codes of a few bits in bytes, both ways."""

from __future__ import annotations

import torch


def split(field: torch.Tensor, run: int, bits: int) -> torch.Tensor:
    """[..., m] bytes → [..., m * 8 / bits] u8 codes: every `run` bytes hold 8 / bits runs of `run` codes, the
    first run in the lowest bits."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=field.device).view(-1, 1)
    runs = field.reshape(*field.shape[:-1], -1, 1, run) >> shifts
    return (runs & ((1 << bits) - 1)).reshape(*field.shape[:-1], -1)


def join(codes: torch.Tensor, run: int, bits: int) -> torch.Tensor:
    """The reverse of `split`: [..., m * 8 / bits] u8 codes → [..., m] bytes. Higher bits of a code are dropped."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device).view(-1, 1)
    runs = codes.reshape(*codes.shape[:-1], -1, 8 // bits, run) & ((1 << bits) - 1)
    return (runs << shifts).sum(-2, dtype=torch.uint8).reshape(*codes.shape[:-1], -1)


def read_half(field: torch.Tensor) -> torch.Tensor:
    """[..., 2 k] bytes → [..., k] f32, read as binary16."""
    return field.contiguous().view(torch.float16).float()


def write_half(values: torch.Tensor) -> torch.Tensor:
    """[..., k] f32 → [..., 2 k] bytes, rounded to binary16."""
    return values.half().contiguous().view(torch.uint8)
