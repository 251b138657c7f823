"""The table of ggml types: one literal row a type. Everything else about a type is looked up here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from quantmill.errors import QuantmillError, choices

ImportanceUse = Literal["none", "optional", "required"]
Search = Literal["default", "thorough"]  # llama.cpp's own search and bytes, or one that goes on from there
SEARCHES: tuple[Search, ...] = ("default", "thorough")


class QuantizeError(QuantmillError):
    """Input that a type cannot hold: an unknown type, a wrong shape, missing importance, a value that is not finite."""


class NotFiniteError(QuantizeError):
    """A weight that is NaN or infinite: its value, its row among those given, and its column."""

    def __init__(self, value: float, row: int, column: int) -> None:
        super().__init__(f"weights: {value} in row {row}, column {column}; nothing can be quantized from it")
        self.value, self.row, self.column = value, row, column


class TooLargeError(QuantizeError):
    """Weights whose scale the type cannot hold, in a row among those given."""

    def __init__(self, row: int, type: str) -> None:
        super().__init__(f"row {row}: weights too large for the scales of {type}; choose BF16 or F32")
        self.row = row


class DeviceFault(QuantizeError):
    """A device gave wrong bytes, no bytes, or none in time."""


@dataclass(frozen=True)
class QuantType:
    """One ggml type. `block` is in weights, `bytes` is the size of one block.

    `importance`: whether the search reads importance; "required" types crash ggml without it.
    `fallback`: what llama-quantize writes when the row length is not a multiple of `block` (None: nothing fits).
    `family`: the lane program (`qkernels/programs/<family>.py`) that encodes it; "plain" types are conversions.
    `scales`: where a block keeps its scales, as (format, byte); a scale that is not finite makes the block unusable.
    The decoded weight is linear in them: a sum over the scales where each serves the whole block (d and dmin), and
    where there are `parts` each serves its share of the block in turn (NVFP4). qkernels/scales.py reads and moves them.
    """

    name: str
    id: int
    block: int
    bytes: int
    family: str
    importance: ImportanceUse = "none"
    fallback: str | None = None
    scales: tuple[tuple[str, int], ...] = ()
    parts: bool = False
    optimal: bool = False

    def reads_importance(self, search: Search) -> bool:
        """Whether a search of this type has a use for importance."""
        return self.importance != "none" or (search == "thorough" and self.family != "plain")

    def is_searched_thoroughly(self, weighted: bool) -> bool:
        """Whether there is a thorough search, with or without importance."""
        if self.family == "plain":
            return False
        return weighted or not (self.optimal or self.importance == "required")

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes / self.block

    def row_bytes(self, n_cols: int) -> int:
        """Bytes of a row of `n_cols` weights. Raises QuantizeError when the row is not a whole number of blocks."""
        if n_cols % self.block:
            raise QuantizeError(f"{n_cols} columns, {self.name} needs a multiple of {self.block}")
        return n_cols // self.block * self.bytes


def _at(format: str, *places: int) -> tuple[tuple[str, int], ...]:
    return tuple((format, place) for place in places)


def _f16(*places: int) -> tuple[tuple[str, int], ...]:
    return _at("f16", *places)


_ROWS = (
    QuantType("F32", 0, 1, 4, "plain"),
    QuantType("F16", 1, 1, 2, "plain", scales=_f16(0)),
    QuantType("BF16", 30, 1, 2, "plain", scales=(("bf16", 0),)),
    QuantType("Q4_0", 2, 32, 18, "scale", "optional", "F16", scales=_f16(0)),
    QuantType("Q4_1", 3, 32, 20, "scale_min", "optional", "F16", scales=_f16(0, 2)),
    QuantType("Q5_0", 6, 32, 22, "scale", "optional", "F16", scales=_f16(0)),
    QuantType("Q5_1", 7, 32, 24, "scale_min", "optional", "F16", scales=_f16(0, 2)),
    QuantType("Q8_0", 8, 32, 34, "rounding", "none", "F16", scales=_f16(0)),
    QuantType("Q2_K", 10, 256, 84, "scale_min", "optional", "Q4_0", scales=_f16(80, 82)),
    QuantType("Q3_K", 11, 256, 110, "scale", "optional", "Q4_0", scales=_f16(108)),
    QuantType("Q4_K", 12, 256, 144, "scale_min", "optional", "Q5_0", scales=_f16(0, 2)),
    QuantType("Q5_K", 13, 256, 176, "scale_min", "optional", "Q5_1", scales=_f16(0, 2)),
    QuantType("Q6_K", 14, 256, 210, "scale", "optional", "Q8_0", scales=_f16(208)),
    QuantType("IQ2_XXS", 16, 256, 66, "grid", "required", "IQ4_NL", scales=_f16(0)),
    QuantType("IQ2_XS", 17, 256, 74, "grid", "required", "IQ4_NL", scales=_f16(0)),
    QuantType("IQ3_XXS", 18, 256, 98, "grid", "optional", "IQ4_NL", scales=_f16(0)),
    QuantType("IQ1_S", 19, 256, 50, "ternary_grid", "required", "IQ4_NL", scales=_f16(0)),
    QuantType("IQ4_NL", 20, 32, 18, "codebook", "optional", "F16", scales=_f16(0)),
    QuantType("IQ3_S", 21, 256, 110, "grid", "optional", "IQ4_NL", scales=_f16(0)),
    QuantType("IQ2_S", 22, 256, 82, "grid", "optional", "IQ4_NL", scales=_f16(0)),
    QuantType("IQ4_XS", 23, 256, 136, "codebook", "optional", "IQ4_NL", scales=_f16(0)),
    QuantType("IQ1_M", 29, 256, 56, "ternary_grid", "optional", "IQ4_NL", scales=(("f16 in nibbles", 48),)),
    QuantType("TQ1_0", 34, 256, 54, "ternary", "none", "Q4_0", scales=_f16(52)),
    QuantType("TQ2_0", 35, 256, 66, "ternary", "none", "Q4_0", scales=_f16(64)),
    QuantType("MXFP4", 39, 32, 17, "fp4", "none", "F16", scales=(("e8m0", 0),)),
    QuantType("NVFP4", 40, 64, 36, "fp4", "none", None, scales=_at("ue4m3", 0, 1, 2, 3), parts=True),
    QuantType("Q1_0", 41, 128, 18, "ternary", "none", None, scales=_f16(0), optimal=True),
    QuantType("Q2_0", 42, 64, 18, "ternary", "none", "Q4_0", scales=_f16(0)),
)

TYPES: Mapping[str, QuantType] = MappingProxyType({row.name: row for row in _ROWS})

# Blocks of no ggml type, which are read and never written: what checkpoints store, each block with its own scale in
# F32. FP8: the scale, 32 codes. INT: the scale, the code of 0 as 16 bits, 32 codes, two in a byte or one.
CHECKPOINT_TYPES: Mapping[str, QuantType] = MappingProxyType(
    {
        row.name: row
        for row in (
            QuantType("FP8_E4M3", -1, 32, 36, "checkpoint"),
            QuantType("FP8_E5M2", -2, 32, 36, "checkpoint"),
            QuantType("INT4", -3, 32, 22, "checkpoint"),
            QuantType("INT8", -4, 32, 38, "checkpoint"),
        )
    }
)


def get_search(name: str) -> Search:
    """A search by its name. Raises QuantizeError with the known names."""
    for search in SEARCHES:
        if search == name:
            return search
    raise QuantizeError(f"unknown search {name!r}; {choices(name, SEARCHES)}")


def get_type(name: str | QuantType) -> QuantType:
    """The row of a type by its ggml spelling, any case; a row, or a member of an enum of that name, is taken as well.

    Raises QuantizeError with the known names.
    """
    if isinstance(name, QuantType):
        return name
    text = str(getattr(name, "name", name))  # gguf.GGMLQuantizationType.Q4_K
    if text in TYPES:
        return TYPES[text]
    for row in _ROWS:
        if row.name.lower() == text.lower():
            return row
    raise QuantizeError(f"unknown type {text!r}; {choices(text, TYPES)}")


def readable_type(name: str | QuantType) -> QuantType:
    """The row of a type that can be decoded: also of one that only checkpoints have. Raises as `get_type`."""
    row = CHECKPOINT_TYPES.get(name) if isinstance(name, str) else None
    return row or get_type(name)
