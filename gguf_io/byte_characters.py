"""GPT-2's way to write any byte as a printable character."""

from __future__ import annotations


def byte_characters() -> list[str]:
    """The printable stand-in of each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_in = {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [stand_in.get(byte, chr(byte)) for byte in range(256)]
