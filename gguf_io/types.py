"""Every ggml type a GGUF tensor can have: its id and the size of one block. Sizes only; no kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gguf.constants import GGML_QUANT_SIZES


@dataclass(frozen=True)
class GGMLType:
    """`id` as stored in the file; a row is whole blocks of `block` values, `bytes` bytes each."""

    id: int
    block: int
    bytes: int


# Q2_0 is newer than the gguf package (ggml.h: GGML_TYPE_Q2_0; ggml-common.h: block_q2_0).
_NEWER_THAN_GGUF_PACKAGE = {"Q2_0": GGMLType(42, 64, 18)}

GGML_TYPES: Mapping[str, GGMLType] = MappingProxyType(
    _NEWER_THAN_GGUF_PACKAGE
    | {type.name: GGMLType(int(type), block, size) for type, (block, size) in GGML_QUANT_SIZES.items()}
)

_NAME_OF_ID = {row.id: name for name, row in GGML_TYPES.items()}


def type_by_id(id: int) -> str | None:
    """ggml's name of a type id, or None for an id that no ggml type has (removed types included)."""
    return _NAME_OF_ID.get(id)
