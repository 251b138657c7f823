"""Parse the head of one GGUF file: keys, values and tensor entries, trusting no number in it.

Every count and length is compared with the bytes that are left before anything of that size is made.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from quantmill.gguf_io.errors import GGUFError, quoted
from quantmill.gguf_io.metadata import SCALARS, GGUFValueType, Metadata, MetaValue, PackedArray
from quantmill.gguf_io.tensors import MAX_DIMS, TensorSpec, checked_shape
from quantmill.gguf_io.types import type_by_id

MAGIC = b"GGUF"
ALIGNMENT = "general.alignment"
DEFAULT_ALIGNMENT = 32
_DAMAGED = "the file is damaged or incomplete: fetch or convert it again"
# Least bytes of a pair (length, key, type, value) and of a tensor entry (length, name, n_dims, type, offset).
_MIN_PAIR, _MIN_ENTRY = 8 + 1 + 4 + 1, 8 + 1 + 4 + 4 + 8
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True)
class Header:
    """What stands before the data of one file."""

    version: int
    metadata: Metadata
    specs: tuple[TensorSpec, ...]


class _Cursor:
    """A position in the bytes of one file; everything read advances it."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path = path
        self.data = data
        self.position = 0

    def error(self, message: str) -> GGUFError:
        return GGUFError(f"{self.path}: {message}")

    @property
    def left(self) -> int:
        return len(self.data) - self.position

    def take(self, size: int, what: str) -> memoryview:
        if size > self.left:
            raise self.error(
                f"{what} needs {size} bytes, {self.left} are left at byte {self.position}; {_DAMAGED}"
            )
        start = self.position
        self.position += size
        return self.data[start : self.position]

    def number(self, code: struct.Struct, what: str) -> int:
        return code.unpack(self.take(code.size, what))[0]

    def string(self, what: str) -> str:
        raw = self.take(self.number(_U64, f"the length of {what}"), what)
        return bytes(raw).decode("utf-8", "surrogateescape")

    def count(self, what: str, least_bytes: int) -> int:
        count = self.number(_U64, f"the number of {what}")
        if count * least_bytes > self.left:
            room = self.left // least_bytes
            raise self.error(f"the header promises {count} {what}, there is room for {room}; {_DAMAGED}")
        return count


def parse_header(path: Path, data: memoryview, shard: int) -> Header:
    """Parse one file. data: uint8 view of the whole file.

    Raises GGUFError when it is not a GGUF of version 2 or 3 or is damaged.
    Source: gguf.cpp: gguf_init_from_reader.
    """
    cursor = _Cursor(path, data)
    version = _read_version(cursor)
    n_tensors = cursor.number(_U64, "the number of tensors")
    metadata = _read_pairs(cursor, cursor.count("keys", _MIN_PAIR))
    alignment = alignment_of(metadata, str(path))
    if n_tensors * _MIN_ENTRY > cursor.left:
        room = cursor.left // _MIN_ENTRY
        raise cursor.error(f"the header promises {n_tensors} tensors, there is room for {room}; {_DAMAGED}")
    entries = [_read_entry(cursor) for _ in range(n_tensors)]
    data_start = cursor.position + -cursor.position % alignment
    specs = tuple(
        TensorSpec(name, shape, type, shard, data_start + offset) for name, shape, type, offset in entries
    )
    _check_places(cursor, specs, data_start, alignment)
    return Header(version, metadata, specs)


def alignment_of(metadata: Metadata, where: str) -> int:
    """Alignment of tensor data in bytes. Raises GGUFError naming `where` unless it is a u32 power of two."""
    found = metadata.get(ALIGNMENT)
    if found is None:
        return DEFAULT_ALIGNMENT
    if found.type != GGUFValueType.UINT32:
        raise GGUFError(f"{where}: {ALIGNMENT} is of type {found.type.name}, it must be UINT32")
    alignment = int(found.value)
    if alignment == 0 or alignment & (alignment - 1):
        raise GGUFError(f"{where}: {ALIGNMENT} is {alignment}, it must be a power of two")
    return alignment


def _read_version(cursor: _Cursor) -> int:
    magic = bytes(cursor.data[:4])
    if magic != MAGIC:
        raise cursor.error(f"not a GGUF file: it begins with {magic!r}, not {MAGIC!r}")
    cursor.position = 4
    version = cursor.number(_U32, "the version")
    if version and version & 0xFFFF == 0:
        raise cursor.error("a big-endian GGUF; only little-endian files are read: convert the model again")
    if version == 1:
        raise cursor.error("GGUF version 1, which llama.cpp no longer reads either; convert the model again")
    if version not in (2, 3):
        raise cursor.error(f"GGUF version {version}; versions 2 and 3 are known")
    return version


def _read_pairs(cursor: _Cursor, count: int) -> Metadata:
    pairs: dict[str, MetaValue] = {}
    for index in range(count):
        key = cursor.string(f"key {index}")
        if not key:
            raise cursor.error(f"key {index} is empty; {_DAMAGED}")
        if key in pairs:
            raise cursor.error(
                f"the key {quoted(key)} occurs twice; llama.cpp refuses such a file too: {_DAMAGED}"
            )
        type = _read_value_type(cursor, key)
        pairs[key] = (
            _read_array(cursor, key) if type == GGUFValueType.ARRAY else _read_scalar(cursor, key, type)
        )
    return Metadata(pairs)


def _read_value_type(cursor: _Cursor, key: str) -> GGUFValueType:
    id = cursor.number(_U32, f"the type of {quoted(key)}")
    try:
        return GGUFValueType(id)
    except ValueError:
        raise cursor.error(f"the key {quoted(key)} has the unknown value type {id}; {_DAMAGED}") from None


def _read_scalar(cursor: _Cursor, key: str, type: GGUFValueType) -> MetaValue:
    what = f"the value of {quoted(key)}"
    return MetaValue(
        type, cursor.string(what) if type == GGUFValueType.STRING else cursor.number(SCALARS[type], what)
    )


def _read_array(cursor: _Cursor, key: str) -> MetaValue:
    element_type = _read_value_type(cursor, key)
    if element_type == GGUFValueType.ARRAY:
        raise cursor.error(
            f"the key {quoted(key)} is an array of arrays, which llama.cpp cannot read; remove the key"
        )
    count = cursor.number(_U64, f"the length of {quoted(key)}")
    if element_type == GGUFValueType.STRING:
        size = _size_of_strings(cursor, key, count)
    else:
        size = count * SCALARS[element_type].size
    raw = bytes(cursor.take(size, f"the array {quoted(key)} of {count} × {element_type.name}"))
    return MetaValue(GGUFValueType.ARRAY, PackedArray(element_type, count, raw), element_type)


def _size_of_strings(cursor: _Cursor, key: str, count: int) -> int:
    """Bytes of `count` strings from here. A plain loop on local names: a vocabulary has 10^5 to 10^6."""
    data, position, end = cursor.data, cursor.position, len(cursor.data)
    length_at = _U64.unpack_from
    for index in range(count):
        after_length = position + 8
        if after_length <= end:
            position = after_length + length_at(data, position)[0]
        if after_length > end or position > end:
            raise cursor.error(
                f"the array {quoted(key)} of {count} strings passes the end at string {index}; {_DAMAGED}"
            )
    return position - cursor.position


def _read_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], str, int]:
    name = cursor.string("a tensor's name")
    n_dims = cursor.number(_U32, f"the number of dimensions of {quoted(name)}")
    if n_dims > MAX_DIMS:
        raise cursor.error(f"{quoted(name)} has {n_dims} dimensions, ggml has at most {MAX_DIMS}; {_DAMAGED}")
    shape = struct.unpack(f"<{n_dims}Q", cursor.take(8 * n_dims, f"the shape of {quoted(name)}"))
    type_id = cursor.number(_U32, f"the type of {quoted(name)}")
    type = type_by_id(type_id)
    if type is None:
        raise cursor.error(
            f"{quoted(name)} has the unknown ggml type {type_id}; a newer quantmill may know it"
        )
    try:
        kept = checked_shape(name, shape, type)
    except GGUFError as error:
        raise cursor.error(str(error)) from None
    return name, kept, type, cursor.number(_U64, f"the offset of {quoted(name)}")


def _check_places(cursor: _Cursor, specs: tuple[TensorSpec, ...], data_start: int, alignment: int) -> None:
    names: set[str] = set()
    for spec in specs:
        if spec.name in names:
            raise cursor.error(f"the tensor {quoted(spec.name)} occurs twice; {_DAMAGED}")
        names.add(spec.name)
        offset = spec.offset - data_start
        if offset % alignment:
            raise cursor.error(
                f"{quoted(spec.name)} lies at offset {offset}, not a multiple of the alignment {alignment}; "
                "llama.cpp cannot load such a file: convert or quantize the model again"
            )
        end = spec.offset + spec.n_bytes
        if end > len(cursor.data):
            raise cursor.error(
                f"{quoted(spec.name)} ends at byte {end}, the file has {len(cursor.data)}; {_DAMAGED}"
            )
    by_place = sorted(specs, key=lambda spec: spec.offset)
    for before, after in pairwise(by_place):
        if before.offset + before.n_bytes > after.offset:
            raise cursor.error(
                f"{quoted(before.name)} and {quoted(after.name)} overlap at byte {after.offset}; {_DAMAGED}"
            )
