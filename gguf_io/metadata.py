"""The key-value part of a GGUF file: an ordered, immutable mapping that keeps the bytes it was read from."""

from __future__ import annotations

import reprlib
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, overload

from quantmill.gguf_io.errors import GGUFError, shown
from quantmill.gguf_io.sensible import whole_number
from quantmill.gguf_io.types import GGUFValueType

__all__ = ["SCALARS", "GGUFValueType", "MetaValue", "Metadata", "PackedArray", "encode_string"]

# Little-endian struct codes. A bool is one byte; llama.cpp reads every byte but 0 as true.
SCALARS: Mapping[GGUFValueType, struct.Struct] = MappingProxyType(
    {
        GGUFValueType.UINT8: struct.Struct("<B"),
        GGUFValueType.INT8: struct.Struct("<b"),
        GGUFValueType.UINT16: struct.Struct("<H"),
        GGUFValueType.INT16: struct.Struct("<h"),
        GGUFValueType.UINT32: struct.Struct("<I"),
        GGUFValueType.INT32: struct.Struct("<i"),
        GGUFValueType.FLOAT32: struct.Struct("<f"),
        GGUFValueType.BOOL: struct.Struct("<?"),
        GGUFValueType.UINT64: struct.Struct("<Q"),
        GGUFValueType.INT64: struct.Struct("<q"),
        GGUFValueType.FLOAT64: struct.Struct("<d"),
    }
)
_LENGTH = struct.Struct("<Q")
_TYPE = struct.Struct("<I")


def encode_string(text: str) -> bytes:
    """u64 length, then the bytes. What was not UTF-8 when read comes back unchanged (surrogateescape)."""
    raw = text.encode("utf-8", "surrogateescape")
    return _LENGTH.pack(len(raw)) + raw


class PackedArray(Sequence[Any]):
    """An array as it lies in the file: `raw` holds the elements, decoded when first looked at.

    A vocabulary has 150 000 strings and most commands only copy it.
    """

    def __init__(self, element_type: GGUFValueType, count: int, raw: bytes) -> None:
        self.element_type = element_type
        self.raw = raw
        self._count = count

    @cached_property
    def _items(self) -> tuple[Any, ...]:
        if self.element_type == GGUFValueType.STRING:
            return tuple(self._strings())
        code = SCALARS[self.element_type].format[1:]
        return struct.unpack(f"<{self._count}{code}", self.raw)

    def _strings(self) -> Iterator[str]:
        position = 0
        for _ in range(self._count):
            start = position + _LENGTH.size
            position = start + _LENGTH.unpack_from(self.raw, position)[0]
            yield self.raw[start:position].decode("utf-8", "surrogateescape")

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self._items[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PackedArray):
            return self.element_type == other.element_type and self.raw == other.raw
        return isinstance(other, (list, tuple)) and self._items == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # it equals lists, which have no hash

    def __repr__(self) -> str:
        return f"<{self._count} × {self.element_type.name}>"


@dataclass(frozen=True)
class MetaValue:
    """One value. `value` is int, float, bool, str, or for ARRAY a sequence of these of `element_type`."""

    type: GGUFValueType
    value: Any
    element_type: GGUFValueType | None = None

    def encode(self) -> bytes:
        """The bytes after the key: type, value. Raises ValueError or struct.error when it does not fit."""
        head = _TYPE.pack(self.type)
        if self.type != GGUFValueType.ARRAY:
            return head + _encode_scalar(self.type, self.value)
        if self.element_type is None or self.element_type == GGUFValueType.ARRAY:
            raise ValueError("an array needs the type of its elements, which cannot be arrays")
        head += _TYPE.pack(self.element_type) + _LENGTH.pack(len(self.value))
        if isinstance(self.value, PackedArray) and self.value.element_type == self.element_type:
            return head + self.value.raw
        return head + b"".join(_encode_scalar(self.element_type, item) for item in self.value)


def _encode_scalar(type: GGUFValueType, value: Any) -> bytes:
    if type == GGUFValueType.STRING:
        return encode_string(value)
    return SCALARS[type].pack(value)


class Metadata(Mapping[str, MetaValue]):
    """Key → MetaValue in file order. Changes give a new Metadata."""

    def __init__(self, items: Mapping[str, MetaValue] | Iterable[tuple[str, MetaValue]] = ()) -> None:
        self._items = dict(items)

    def __getitem__(self, key: str) -> MetaValue:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"Metadata({self._items!r})"

    def value(self, key: str, default: Any = None) -> Any:
        """The plain value of `key`, or `default` when there is no such key."""
        found = self._items.get(key)
        return default if found is None else found.value

    def number(self, key: str, default: int = 0) -> int:
        """The number of things under `key`, or `default`. Raises GGUFError where the file has something else there."""
        found = self._items.get(key)
        return default if found is None else whole_number(key, found.value)

    def set(self, key: str, value: MetaValue) -> Metadata:
        """With `key` last, as llama.cpp sets it: removed, then appended (gguf.cpp: gguf_set_val_*)."""
        return Metadata([*self.without(key).items(), (key, value)])

    def replace(self, key: str, value: MetaValue) -> Metadata:
        """With another value for `key` in its place. Raises KeyError when there is no such key."""
        if key not in self._items:
            raise KeyError(key)
        return Metadata(self._items | {key: value})

    def without(self, *keys: str) -> Metadata:
        """Without `keys`; keys that do not occur are passed over."""
        return Metadata((key, value) for key, value in self._items.items() if key not in keys)

    def encode(self) -> bytes:
        """All pairs as they lie in the file, no count. Raises GGUFError naming a key that does not fit."""
        pairs = []
        for key, value in self._items.items():
            try:
                pairs.append(encode_string(key) + value.encode())
            except (ValueError, TypeError, AttributeError, OverflowError, struct.error) as error:
                raise GGUFError(
                    f"{shown(key)}: {reprlib.repr(value.value)} cannot be written as {value.type.name}: {error}"
                ) from error
        return b"".join(pairs)

    @property
    def size(self) -> int:
        """Bytes that encode() gives."""
        return len(self.encode())
