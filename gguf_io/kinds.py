"""Kinds of files, judged by what is in them and never by their names."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_HEAD_BYTES = 1 << 16
_MAX_JSON_BYTES = 256 << 20  # more is no record of ours
_MAX_NAME = 1024  # of an entry of a .dat file
_IS_IMATRIX = (
    struct.pack("<Q", 12) + b"general.type" + struct.pack("<IQ", 8, 7) + b"imatrix"
)  # key, type of the value (string), value


@dataclass(frozen=True)
class Kind:
    """name: with its article, for messages. holds: whether a file is of this kind; False where it cannot be read."""

    name: str
    is_kind: Callable[[Path, bytes], bool]

    def holds(self, path: Path) -> bool:
        try:
            return self.is_kind(path, head_of(path))
        except OSError:
            return False


def starting_with(name: str, *starts: bytes) -> Kind:
    """Files that begin with one of these."""
    return Kind(name, lambda path, head: head.startswith(starts))


def containing(name: str, *marks: bytes) -> Kind:
    """Files with all of these in their first 64 KiB."""
    return Kind(name, lambda path, head: all(mark in head for mark in marks))


def json_object(name: str, *keys: str) -> Kind:
    """Files that are one JSON object with all of these keys."""

    def holds(path: Path, head: bytes) -> bool:
        found = _json(path, head)
        return isinstance(found, dict) and all(key in found for key in keys)

    return Kind(name, holds)


def head_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def content_of(path: Path) -> str:
    """What a file holds, in words with an article."""
    try:
        head = head_of(path)
    except OSError:
        return "a file"
    for kind in (IMATRIX, MODEL, LOGITS, _SAFETENSORS):
        if kind.is_kind(path, head):
            return kind.name
    if not head:
        return "an empty file"
    if _json(path, head) is not None:
        return "a JSON file"
    return "a text" if _is_text(head) else "a binary file"


def _json(path: Path, head: bytes) -> object:
    if not head.lstrip().startswith((b"{", b"[")) or path.stat().st_size > _MAX_JSON_BYTES:
        return None
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None


def _is_text(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4 and b"\0" not in head  # a character may be cut in two
    return b"\0" not in head


def _is_imatrix(path: Path, head: bytes) -> bool:
    if head.startswith(b"GGUF"):
        return _IS_IMATRIX in head or b"imatrix.chunk_count" in head
    if len(head) < 8:
        return False
    n_entries, n_name = struct.unpack("<ii", head[:8])
    name = head[8 : 8 + max(n_name, 0)]
    return 0 < n_entries < 1 << 20 and 0 < n_name <= _MAX_NAME and name.isascii() and b".weight" in name


def _is_safetensors(path: Path, head: bytes) -> bool:
    return len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= path.stat().st_size


IMATRIX = Kind("an importance matrix", _is_imatrix)
MODEL = Kind("a GGUF model", lambda path, head: head.startswith(b"GGUF") and not _is_imatrix(path, head))
LOGITS = starting_with("saved predictions", b"_logits_", b"_qmtopk_")
_SAFETENSORS = Kind("a safetensors file", _is_safetensors)
