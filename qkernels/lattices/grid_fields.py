"""What the fields of a block of a grid type hold: entries, signs or shifts, scales; and the way back.

Source: ggml-common.h: block_iq*; ggml-quants.c: dequantize_row_iq*.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quantmill.qkernels.lattices.bits import join, read_half, split, write_half

Bytes = dict[str, torch.Tensor]  # field of a block -> [n_rows, n_blocks, bytes] u8


@dataclass
class GridChoice:
    """What n rows of one type hold.

    entries:  [n_rows, n_cols / dim] i16, of the codebook
    negative: [n_rows, n_cols] bool, signs; None for the types that shift instead
    down:     [n_rows, n_cols / 8] bool, shifted down rather than up; None for the types with signs
    scales:   [n_rows, n_blocks, n_groups] i16, odd numbers
    d:        [n_rows, n_blocks] f32, what one of them stands for
    """

    entries: torch.Tensor
    negative: torch.Tensor | None
    down: torch.Tensor | None
    scales: torch.Tensor
    d: torch.Tensor


def _words(field: torch.Tensor) -> torch.Tensor:
    """[..., 2 k] bytes → [..., k] i32, unsigned 16-bit numbers."""
    return field.contiguous().view(torch.int16).int() & 0xFFFF


def _word_bytes(words: torch.Tensor) -> torch.Tensor:
    """The reverse of `_words`."""
    return torch.stack([words & 255, words >> 8], -1).to(torch.uint8).flatten(-2)


def _rows(parts: torch.Tensor) -> torch.Tensor:
    """[n_rows, n_blocks, k] → [n_rows, n_blocks * k]."""
    return parts.flatten(1)


def _blocks(rows: torch.Tensor, per_block: int) -> torch.Tensor:
    return rows.view(len(rows), -1, per_block)


def _sign_bits(sign_bytes: torch.Tensor) -> torch.Tensor:
    return _rows(split(sign_bytes, 1, 1)) != 0


def _sign_bytes(negative: torch.Tensor) -> torch.Tensor:
    """[n_rows, n_cols] bool → [n_rows, n_blocks, 32] bytes."""
    return _blocks(join(negative.to(torch.uint8), 1, 1), 32)


def _whole_byte(seven: torch.Tensor) -> torch.Tensor:
    """Seven signs → eight, an even number of them negative."""
    parity = seven
    for shift in (4, 2, 1):
        parity = parity ^ (parity >> shift)
    return (seven | ((parity & 1) << 7)).to(torch.uint8)


def _odd(stored: torch.Tensor) -> torch.Tensor:
    return 2 * stored.to(torch.int16) + 1


def _halves(scales: torch.Tensor) -> torch.Tensor:
    return ((scales - 1) // 2).to(torch.uint8)


def _read_packed_signs(field: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[..., 4 k] bytes: 32-bit words of four times seven signs and a scale → sign bytes [..., 4 k], scales [..., k]."""
    words = _words(field).unflatten(-1, (-1, 2))
    low, high = words[..., 0], words[..., 1]
    seven = torch.stack([low & 127, low >> 7 & 127, (low >> 14 | high << 2) & 127, high >> 5 & 127], -1)
    return _whole_byte(seven).flatten(-2), high >> 12


def _write_packed_signs(sign_bytes: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    seven = (sign_bytes.int() & 127).unflatten(-1, (-1, 4))
    a, b, c, e = seven.unbind(-1)
    low = (a | b << 7 | c << 14) & 0xFFFF
    high = c >> 2 | e << 5 | stored.int() << 12
    return _word_bytes(torch.stack([low, high], -1).flatten(-2))


def read_iq2_xxs(parts: Bytes) -> GridChoice:
    pairs = parts["qs"].unflatten(-1, (8, 8))
    signs, stored = _read_packed_signs(pairs[..., 4:].flatten(-2))
    entries = _rows(pairs[..., :4].flatten(-2)).to(torch.int16)
    return GridChoice(entries, _sign_bits(signs), None, _odd(stored), read_half(parts["d"])[..., 0])


def write_iq2_xxs(choice: GridChoice) -> Bytes:
    assert choice.negative is not None
    words = _write_packed_signs(_sign_bytes(choice.negative), _halves(choice.scales)).unflatten(-1, (8, 4))
    entries = _blocks(choice.entries, 32).to(torch.uint8).unflatten(-1, (8, 4))
    return {"d": write_half(choice.d[..., None]), "qs": torch.cat([entries, words], -1).flatten(-2)}


def read_iq2_xs(parts: Bytes) -> GridChoice:
    words = _words(parts["qs"])
    scales = _odd(split(parts["scales"], 1, 4))
    entries = _rows(words & 511).to(torch.int16)
    negative = _sign_bits(_whole_byte(words >> 9))
    return GridChoice(entries, negative, None, scales, read_half(parts["d"])[..., 0])


def write_iq2_xs(choice: GridChoice) -> Bytes:
    assert choice.negative is not None
    words = _blocks(choice.entries, 32).int() | (_sign_bytes(choice.negative).int() & 127) << 9
    scales = join(_halves(choice.scales), 1, 4)
    return {"d": write_half(choice.d[..., None]), "qs": _word_bytes(words), "scales": scales}


def read_iq2_s(parts: Bytes) -> GridChoice:
    entries = parts["qs"].to(torch.int16) | split(parts["qh"], 1, 2).to(torch.int16) << 8
    scales = _odd(split(parts["scales"], 1, 4))
    negative = _sign_bits(parts["signs"])
    return GridChoice(_rows(entries), negative, None, scales, read_half(parts["d"])[..., 0])


def write_iq2_s(choice: GridChoice) -> Bytes:
    assert choice.negative is not None
    entries = _blocks(choice.entries, 32)
    return {
        "d": write_half(choice.d[..., None]),
        "qs": (entries & 255).to(torch.uint8),
        "signs": _sign_bytes(choice.negative),
        "qh": join((entries >> 8).to(torch.uint8), 1, 2),
        "scales": join(_halves(choice.scales), 1, 4),
    }


def read_iq3_xxs(parts: Bytes) -> GridChoice:
    signs, stored = _read_packed_signs(parts["signs"])
    entries = _rows(parts["qs"]).to(torch.int16)
    return GridChoice(entries, _sign_bits(signs), None, _odd(stored), read_half(parts["d"])[..., 0])


def write_iq3_xxs(choice: GridChoice) -> Bytes:
    assert choice.negative is not None
    return {
        "d": write_half(choice.d[..., None]),
        "qs": _blocks(choice.entries, 64).to(torch.uint8),
        "signs": _write_packed_signs(_sign_bytes(choice.negative), _halves(choice.scales)),
    }


def read_iq3_s(parts: Bytes) -> GridChoice:
    entries = parts["qs"].to(torch.int16) | split(parts["qh"], 1, 1).to(torch.int16) << 8
    scales = _odd(split(parts["scales"], 1, 4))
    negative = _sign_bits(parts["signs"])
    return GridChoice(_rows(entries), negative, None, scales, read_half(parts["d"])[..., 0])


def write_iq3_s(choice: GridChoice) -> Bytes:
    assert choice.negative is not None
    entries = _blocks(choice.entries, 64)
    return {
        "d": write_half(choice.d[..., None]),
        "qs": (entries & 255).to(torch.uint8),
        "qh": join((entries >> 8).to(torch.uint8), 1, 1),
        "signs": _sign_bytes(choice.negative),
        "scales": join(_halves(choice.scales), 1, 4),
    }


def _three_bits(words: torch.Tensor) -> torch.Tensor:
    """[..., k] i32 → [..., 4 k]: the four lowest times three bits of each."""
    return torch.stack([words >> shift & 7 for shift in (0, 3, 6, 9)], -1).flatten(-2)


def _from_three_bits(numbers: torch.Tensor) -> torch.Tensor:
    a, b, c, e = numbers.int().unflatten(-1, (-1, 4)).unbind(-1)
    return a | b << 3 | c << 6 | e << 9


def read_iq1_s(parts: Bytes) -> GridChoice:
    head = _words(parts["qh"])
    entries = parts["qs"].int() | _three_bits(head) << 8
    down = _rows((head >> 15 != 0).repeat_interleave(4, -1))
    scales = _odd(head >> 12 & 7)
    return GridChoice(_rows(entries).to(torch.int16), None, down, scales, read_half(parts["d"])[..., 0])


def write_iq1_s(choice: GridChoice) -> Bytes:
    assert choice.down is not None
    entries = _blocks(choice.entries, 32).int()
    down = _blocks(choice.down, 32)[..., ::4].int()
    head = _from_three_bits(entries >> 8) | _halves(choice.scales).int() << 12 | down << 15
    return {
        "d": write_half(choice.d[..., None]),
        "qs": (entries & 255).to(torch.uint8),
        "qh": _word_bytes(head),
    }


def read_iq1_m(parts: Bytes) -> GridChoice:
    nibbles = split(parts["qh"], 1, 4)
    entries = parts["qs"].int() | (nibbles & 7).int() << 8
    words = _words(parts["scales"])
    top = words >> 12
    low, high = top[..., 0] | top[..., 1] << 4, top[..., 2] | top[..., 3] << 4
    d = read_half(torch.stack([low, high], -1).to(torch.uint8))[..., 0]
    down = _rows(nibbles & 8) != 0
    return GridChoice(_rows(entries).to(torch.int16), None, down, _odd(_three_bits(words)), d)


def write_iq1_m(choice: GridChoice) -> Bytes:
    assert choice.down is not None
    entries = _blocks(choice.entries, 32).int()
    nibbles = entries >> 8 | _blocks(choice.down, 32).int() << 3
    half = _words(write_half(choice.d[..., None]))
    quarters = torch.cat([half >> shift & 15 for shift in (0, 4, 8, 12)], -1)
    words = _from_three_bits(_halves(choice.scales)) | quarters << 12
    return {
        "qs": (entries & 255).to(torch.uint8),
        "qh": join(nibbles.to(torch.uint8), 1, 4),
        "scales": _word_bytes(words),
    }
