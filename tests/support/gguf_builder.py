"""Build the bytes of GGUF files with struct alone, sound ones and broken ones. Uses nothing of gguf_io."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
CODES = {
    U8: "B",
    I8: "b",
    U16: "H",
    I16: "h",
    U32: "I",
    I32: "i",
    F32: "f",
    BOOL: "?",
    U64: "Q",
    I64: "q",
    F64: "d",
}


@dataclass(frozen=True)
class RawTensor:
    """A tensor entry and its data; `offset` None places it after the one before, padded to the alignment."""

    name: str | bytes
    dims: tuple[int, ...]
    type_id: int
    data: bytes = b""
    offset: int | None = None


def string(text: str | bytes) -> bytes:
    """u64 length and the bytes."""
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def scalar(type_id: int, value: Any) -> bytes:
    """The bytes of one value, without its type."""
    return string(value) if type_id == STRING else struct.pack("<" + CODES[type_id], value)


def pair(key: str | bytes, type_id: int, value: Any) -> bytes:
    """One key with a scalar value."""
    return string(key) + struct.pack("<I", type_id) + scalar(type_id, value)


def array(key: str | bytes, element_id: int, items: Sequence[Any], count: int | None = None) -> bytes:
    """One key with an array; `count` is what the file says, the number of items unless given."""
    promised = len(items) if count is None else count
    head = string(key) + struct.pack("<IIQ", ARRAY, element_id, promised)
    return head + b"".join(scalar(element_id, item) for item in items)


def gguf(
    pairs: Sequence[bytes] = (),
    tensors: Sequence[RawTensor] = (),
    *,
    alignment: int = 32,
    version: int = 3,
    magic: bytes = b"GGUF",
    n_pairs: int | None = None,
    n_tensors: int | None = None,
) -> bytes:
    """A whole file. The counts are those of `pairs` and `tensors` unless given."""
    entries, data = b"", b""
    for tensor in tensors:
        data += bytes(-len(data) % alignment)
        offset = len(data) if tensor.offset is None else tensor.offset
        entries += string(tensor.name) + struct.pack("<I", len(tensor.dims))
        entries += b"".join(struct.pack("<Q", size) for size in tensor.dims)
        entries += struct.pack("<IQ", tensor.type_id, offset)
        data += tensor.data
    counts = (
        len(tensors) if n_tensors is None else n_tensors,
        len(pairs) if n_pairs is None else n_pairs,
    )
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + entries
    return head + bytes(-len(head) % alignment) + data + bytes(-len(data) % alignment)


# A small F32 tensor for files that need one.
F32_ID, Q4_K_ID = 0, 12
ROW = struct.pack("<8f", *range(8))
TENSOR = RawTensor("a", (8,), F32_ID, ROW)
