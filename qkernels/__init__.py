"""Numbers to blocks and back: every ggml type, on every machine. Knows no files and no models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantmill.qkernels.api import quantize, to_float32
from quantmill.qkernels.types import TYPES, QuantizeError, QuantType, get_type

if TYPE_CHECKING:
    from quantmill.qkernels.decode import dequantize

__all__ = ["TYPES", "QuantType", "QuantizeError", "dequantize", "get_type", "quantize", "to_float32"]


def __getattr__(name: str) -> object:
    # Decoding needs torch, which costs a second to import and which the CPU path does without.
    if name == "dequantize":
        from quantmill.qkernels.decode import dequantize

        return dequantize
    raise AttributeError(f"module 'quantmill.qkernels' has no attribute {name!r}")
