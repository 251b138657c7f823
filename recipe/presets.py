"""File types: what `llama-quantize MODEL TYPE` calls TYPE. One row each; the mixtures are in mixtures.py.

Source: tools/quantize/quantize.cpp (names, aliases, numbers), src/llama-quant.cpp: llama_ftype_get_default_type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from quantmill.errors import choices
from quantmill.recipe.errors import RecipeError


@dataclass(frozen=True)
class FileType:
    """`id` is written as `general.file_type`; `base` is the type of every tensor that no rule lifts or lowers."""

    name: str
    id: int
    base: str
    description: str


_ROWS = (
    FileType("Q1_0", 40, "Q1_0", "1.13 bits, binary"),
    FileType("Q2_0", 41, "Q2_0", "2.25 bits, groups of 64"),
    FileType("Q4_0", 2, "Q4_0", "4.5 bits, plain rounding"),
    FileType("Q4_1", 3, "Q4_1", "5 bits, plain rounding with offset"),
    FileType("MXFP4_MOE", 38, "MXFP4", "experts in MXFP4, the rest in Q8_0"),
    FileType("Q5_0", 8, "Q5_0", "5.5 bits, plain rounding"),
    FileType("Q5_1", 9, "Q5_1", "6 bits, plain rounding with offset"),
    FileType("IQ2_XXS", 19, "IQ2_XXS", "2.06 bits, needs an importance matrix"),
    FileType("IQ2_XS", 20, "IQ2_XS", "2.31 bits, needs an importance matrix"),
    FileType("IQ2_S", 28, "IQ2_XS", "2.5 bits, needs an importance matrix"),
    FileType("IQ2_M", 29, "IQ2_S", "2.7 bits, needs an importance matrix"),
    FileType("IQ1_S", 24, "IQ1_S", "1.56 bits, needs an importance matrix"),
    FileType("IQ1_M", 31, "IQ1_M", "1.75 bits, needs an importance matrix"),
    FileType("TQ1_0", 36, "TQ1_0", "1.69 bits, for ternary models"),
    FileType("TQ2_0", 37, "TQ2_0", "2.06 bits, for ternary models"),
    FileType("Q2_K", 10, "Q2_K", "2.6 bits, attention and down projection in 3 to 4"),
    FileType("Q2_K_S", 21, "Q2_K", "2.6 bits, smallest k-quant, needs an importance matrix"),
    FileType("IQ3_XXS", 23, "IQ3_XXS", "3.06 bits, needs an importance matrix"),
    FileType("IQ3_S", 26, "IQ3_S", "3.44 bits"),
    FileType("IQ3_M", 27, "IQ3_S", "3.66 bits"),
    FileType("IQ3_XS", 22, "IQ3_S", "3.3 bits, needs an importance matrix"),
    FileType("Q3_K_S", 11, "Q3_K", "3.4 bits, no mixture"),
    FileType("Q3_K_M", 12, "Q3_K", "3.9 bits"),
    FileType("Q3_K_L", 13, "Q3_K", "4.3 bits"),
    FileType("IQ4_NL", 25, "IQ4_NL", "4.5 bits, non-linear levels, blocks of 32"),
    FileType("IQ4_XS", 30, "IQ4_XS", "4.25 bits, non-linear levels"),
    FileType("Q4_K_S", 14, "Q4_K", "4.6 bits"),
    FileType("Q4_K_M", 15, "Q4_K", "4.8 bits, the usual choice"),
    FileType("Q5_K_S", 16, "Q5_K", "5.5 bits"),
    FileType("Q5_K_M", 17, "Q5_K", "5.7 bits"),
    FileType("Q6_K", 18, "Q6_K", "6.6 bits, hardly distinguishable from the original"),
    FileType("Q8_0", 7, "Q8_0", "8.5 bits, indistinguishable in practice"),
    FileType("F16", 1, "F16", "16 bits"),
    FileType("BF16", 32, "BF16", "16 bits, exponent range of F32"),
    FileType("F32", 0, "F32", "32 bits"),
)

FILE_TYPES: Mapping[str, FileType] = MappingProxyType({row.name: row for row in _ROWS})
ALIASES: Mapping[str, str] = MappingProxyType({"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"})

# COPY has no number of its own: the output keeps the input's file type.
COPY = "COPY"

# What `general.file_type` a file without the key most likely has, by its most frequent tensor type
# (src/llama-model-loader.cpp). Types without a row count as F32, as there.
GUESSED_FLAG = 1024
FILE_TYPE_OF_TENSOR_TYPE: Mapping[str, int] = MappingProxyType(
    {
        **{name: FILE_TYPES[name].id for name in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1")},
        **{name: FILE_TYPES[name].id for name in ("Q8_0", "Q2_K", "Q6_K", "TQ1_0", "TQ2_0", "Q1_0", "Q2_0")},
        **{name: FILE_TYPES[name].id for name in ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")},
        **{name: FILE_TYPES[name].id for name in ("IQ1_S", "IQ1_M", "IQ4_NL", "IQ4_XS")},
        **{name: FILE_TYPES[full].id for name, full in ALIASES.items()},
        "NVFP4": 39,
    }
)


def find_file_type(text: str) -> str | None:
    """The name of a file type given as name (any case), alias or number; None when it is none of these.

    Numbers must be whole words. llama-quantize takes any word that starts with digits (`7B.gguf` is 7, Q8_0).
    """
    name = text.upper()
    if name in FILE_TYPES or name == COPY:
        return name
    if name in ALIASES:
        return ALIASES[name]
    if text.isascii() and text.isdigit():
        return next((row.name for row in _ROWS if row.id == int(text)), None)
    return None


def get_file_type(text: str) -> str:
    """As find_file_type, but raises RecipeError with the known names."""
    name = find_file_type(text)
    if name is None:
        raise RecipeError(f"unknown file type {text!r}; {choices(text, [*FILE_TYPES, COPY])}")
    return name
