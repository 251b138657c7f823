"""SentencePiece's tokenizer.model: a protocol buffer of pieces, read without the sentencepiece package.

Of ModelProto field 1 matters, a repeated message {1: piece text, 2: score float32, 3: type}; of TrainerSpec (2) the
kind of vocabulary (3), of NormalizerSpec (3) the table of characters (2), whether a space is put before a text (3) and
whether further ones are removed (4) (sentencepiece_model.proto). Everything else is skipped by its wire type.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from quantmill.gguf_io.errors import GGUFError

PIECES, TEXT, SCORE, KIND = 1, 1, 2, 3
TRAINER, MODEL = 2, 3
NORMALIZER, CHARSMAP, ADDS_SPACE, TRIMS = 3, 2, 3, 4
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
NORMAL = 1
UNIGRAM = 1


@dataclass(frozen=True)
class Piece:
    """kind: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte, as in sentencepiece_model.proto."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class Normalizer:
    """model: 1 Unigram, 2 BPE. charsmap: a table of characters that are replaced."""

    model: int = UNIGRAM
    charsmap: bytes = b""
    adds_space: bool = True
    trims: bool = True


def read_normalizer(path: Path) -> Normalizer:
    """What happens to a text before it is cut. Raises GGUFError when the file is no SentencePiece model."""
    found: dict[tuple[int, int], bytes | int] = {}
    try:
        for outer, message in _fields(path.read_bytes()):
            if outer in (TRAINER, NORMALIZER) and isinstance(message, bytes):
                found |= {(outer, inner): value for inner, value in _fields(message)}
    except (ValueError, IndexError) as error:
        raise GGUFError(f"{path}: not a SentencePiece model ({error})") from None
    charsmap = found.get((NORMALIZER, CHARSMAP), b"")
    return Normalizer(
        int(found.get((TRAINER, MODEL), UNIGRAM)),
        charsmap if isinstance(charsmap, bytes) else b"",
        bool(found.get((NORMALIZER, ADDS_SPACE), 1)),
        bool(found.get((NORMALIZER, TRIMS), 1)),
    )


def read_pieces(path: Path) -> list[Piece]:
    """All pieces in id order. Raises GGUFError when the file is no SentencePiece model."""
    try:
        pieces = [_piece(value) for field, value in _fields(path.read_bytes()) if field == PIECES]
    except (ValueError, IndexError, struct.error) as error:
        raise GGUFError(f"{path}: not a SentencePiece model ({error})") from None
    if not pieces:
        raise GGUFError(f"{path}: not a SentencePiece model (no pieces)")
    return pieces


def _piece(message: bytes | int) -> Piece:
    piece = Piece("", 0.0, NORMAL)
    if isinstance(message, int):
        raise ValueError("a piece that is no message")
    for field, value in _fields(message):
        if field == TEXT and isinstance(value, bytes):
            piece = replace(piece, text=value.decode("utf-8"))
        elif field == SCORE and isinstance(value, bytes):
            piece = replace(piece, score=struct.unpack("<f", value)[0])
        elif field == KIND and isinstance(value, int):
            piece = replace(piece, kind=value)
    return piece


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(field number, value): varints as int, everything else as its bytes."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        wire = tag & 7
        if wire == VARINT:
            value, position = _varint(message, position)
            yield tag >> 3, value
            continue
        if wire == BYTES:
            size, position = _varint(message, position)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire}")
        if position + size > len(message):
            raise ValueError("truncated")
        yield tag >> 3, message[position : position + size]
        position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than ten bytes")
