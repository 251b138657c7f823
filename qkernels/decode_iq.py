"""Decoders of the IQ types: blocks of a codebook's entries, signs and scales → float32."""

from __future__ import annotations

import functools

import torch

from .codebooks import codebook
from .decode_fields import Fields, half, look_up, minus, spread, table, times, words


def iq4_nl(f: Fields) -> torch.Tensor:
    return times(half(f["d"]), look_up(table("iq4", f["qs"].device), spread(f["qs"], 16, 4)))


def iq4_xs(f: Fields) -> torch.Tensor:
    scales = spread(f["scales_l"], 1, 4) | (spread(f["scales_h"], 1, 2) << 4)
    values = look_up(table("iq4", f["qs"].device), spread(f["qs"], 16, 4))
    return times(half(f["d"]) * (scales.view(torch.int8) - 32), values)


@functools.cache
def _grid(name: str, device: torch.device) -> torch.Tensor:
    """[entries, dim] f32 values of a codebook."""
    book = codebook(name)
    return torch.tensor(book.values[book.digits], device=device)


def _signed(values: torch.Tensor, sign_bytes: torch.Tensor) -> torch.Tensor:
    """values [n, m] f32, sign_bytes [n, m / 8] u8: bit k negates value k of its eight."""
    return torch.where(spread(sign_bytes, 1, 1) != 0, -values, values)


def _even_signs(seven: torch.Tensor) -> torch.Tensor:
    """[n, k] i32 numbers below 128 → [n, k] u8: the eighth bit makes the count of set bits even."""
    fold = seven ^ (seven >> 4)
    fold = fold ^ (fold >> 2)
    return (seven | ((fold ^ (fold >> 1)) & 1) << 7).to(torch.uint8)


def _packed_signs(field: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[n, 4 k] bytes → scales [n, k] i32, sign bytes [n, 4 k] u8.

    Each 32-bit word holds four times seven signs, then a 4-bit scale.
    """
    word = words(field).view(len(field), -1, 2)
    low, high = word[..., 0], word[..., 1]
    signs = torch.stack([low & 127, (low >> 7) & 127, (low >> 14) | (high << 2) & 127, (high >> 5) & 127], 2)
    return high >> 12, _even_signs(signs.view(len(field), -1))


def iq2_xxs(f: Fields) -> torch.Tensor:
    pairs = f["qs"].reshape(len(f["qs"]), 8, 8)
    scales, signs = _packed_signs(pairs[:, :, 4:].reshape(len(pairs), -1))
    values = look_up(_grid("IQ2_XXS", pairs.device), pairs[:, :, :4])
    return times(half(f["d"]) * (scales.float() + 0.5) * 0.25, _signed(values, signs))


def iq2_xs(f: Fields) -> torch.Tensor:
    entries = words(f["qs"])
    values = look_up(_grid("IQ2_XS", entries.device), entries & 511)
    scales = half(f["d"]) * (spread(f["scales"], 1, 4).float() + 0.5) * 0.25
    return times(scales, _signed(values, _even_signs(entries >> 9)))


def iq2_s(f: Fields) -> torch.Tensor:
    entries = f["qs"].int() | (spread(f["qh"], 1, 2).int() << 8)
    values = look_up(_grid("IQ2_S", entries.device), entries)
    scales = half(f["d"]) * (spread(f["scales"], 1, 4).float() + 0.5) * 0.25
    return times(scales, _signed(values, f["signs"]))


def iq3_xxs(f: Fields) -> torch.Tensor:
    scales, signs = _packed_signs(f["signs"])
    values = look_up(_grid("IQ3_XXS", f["qs"].device), f["qs"])
    return times(half(f["d"]) * (scales.float() + 0.5) * 0.5, _signed(values, signs))


def iq3_s(f: Fields) -> torch.Tensor:
    entries = f["qs"].int() | (spread(f["qh"], 1, 1).int() << 8)
    values = look_up(_grid("IQ3_S", entries.device), entries)
    return times(half(f["d"]) * (2 * spread(f["scales"], 1, 4) + 1), _signed(values, f["signs"]))


def _shifted(values: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Grid values [n, m] f32 moved by 1/8: up, or down where `down` [n, k] is set for m / k of them."""
    return minus(values, torch.where(down, 0.125, -0.125))


def _three_bits(field: torch.Tensor) -> torch.Tensor:
    """[n, k] i32 → [n, 4 k]: the four lowest times three bits of each."""
    parts = [(field >> shift) & 7 for shift in (0, 3, 6, 9)]
    return torch.stack(parts, 2).view(len(field), -1)


def iq1_s(f: Fields) -> torch.Tensor:
    head = words(f["qh"])
    values = look_up(_grid("IQ1_S", head.device), f["qs"].int() | (_three_bits(head) << 8))
    return times(half(f["d"]) * (2 * ((head >> 12) & 7) + 1), _shifted(values, head >> 15 != 0))


def iq1_m(f: Fields) -> torch.Tensor:
    nibbles = spread(f["qh"], 1, 4)
    values = look_up(_grid("IQ1_S", nibbles.device), f["qs"].int() | ((nibbles & 7).int() << 8))
    packed = words(f["scales"])  # four times three bits, and a quarter of d at the top
    top = packed >> 12
    d = torch.stack([top[:, 0] | (top[:, 1] << 4), top[:, 2] | (top[:, 3] << 4)], 1).to(torch.uint8)
    scales = _three_bits(packed)
    return times(half(d) * (2 * scales + 1), _shifted(values, nibbles & 8 != 0))
