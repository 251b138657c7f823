"""What a GGUF can hold: the types of values, and every ggml type with its id and the size of one block. No kernels.

The gguf package has both, but behind a package that loads numpy, yaml and sentencepiece: longer than planning takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType


class GGUFValueType(IntEnum):
    """The type of a value of the metadata, as stored in the file (gguf.h: gguf_type)."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


@dataclass(frozen=True)
class GGMLType:
    """`id` as stored in the file; a row is whole blocks of `block` values, `bytes` bytes each."""

    id: int
    block: int
    bytes: int


# ggml.h: ggml_type; ggml-common.h: block_q4_0 and its like.
GGML_TYPES: Mapping[str, GGMLType] = MappingProxyType(
    {
        "F32": GGMLType(0, 1, 4),
        "F16": GGMLType(1, 1, 2),
        "Q4_0": GGMLType(2, 32, 18),
        "Q4_1": GGMLType(3, 32, 20),
        "Q5_0": GGMLType(6, 32, 22),
        "Q5_1": GGMLType(7, 32, 24),
        "Q8_0": GGMLType(8, 32, 34),
        "Q8_1": GGMLType(9, 32, 40),
        "Q2_K": GGMLType(10, 256, 84),
        "Q3_K": GGMLType(11, 256, 110),
        "Q4_K": GGMLType(12, 256, 144),
        "Q5_K": GGMLType(13, 256, 176),
        "Q6_K": GGMLType(14, 256, 210),
        "Q8_K": GGMLType(15, 256, 292),
        "IQ2_XXS": GGMLType(16, 256, 66),
        "IQ2_XS": GGMLType(17, 256, 74),
        "IQ3_XXS": GGMLType(18, 256, 98),
        "IQ1_S": GGMLType(19, 256, 50),
        "IQ4_NL": GGMLType(20, 32, 18),
        "IQ3_S": GGMLType(21, 256, 110),
        "IQ2_S": GGMLType(22, 256, 82),
        "IQ4_XS": GGMLType(23, 256, 136),
        "I8": GGMLType(24, 1, 1),
        "I16": GGMLType(25, 1, 2),
        "I32": GGMLType(26, 1, 4),
        "I64": GGMLType(27, 1, 8),
        "F64": GGMLType(28, 1, 8),
        "IQ1_M": GGMLType(29, 256, 56),
        "BF16": GGMLType(30, 1, 2),
        "TQ1_0": GGMLType(34, 256, 54),
        "TQ2_0": GGMLType(35, 256, 66),
        "MXFP4": GGMLType(39, 32, 17),
        "NVFP4": GGMLType(40, 64, 36),
        "Q1_0": GGMLType(41, 128, 18),
        "Q2_0": GGMLType(42, 64, 18),
    }
)

_NAME_OF_ID = {row.id: name for name, row in GGML_TYPES.items()}


def type_by_id(id: int) -> str | None:
    """ggml's name of a type id, or None for an id that no ggml type has (removed types included)."""
    return _NAME_OF_ID.get(id)
