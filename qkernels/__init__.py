"""Numbers to blocks and back: every ggml type, on every machine. Knows no files and no models.

The table of types is there at once; what works on arrays is imported when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantmill.qkernels.types import TYPES, QuantizeError, QuantType, get_type

if TYPE_CHECKING:
    from quantmill.qkernels.api import dequantize, quantize, to_float32

__all__ = ["TYPES", "QuantType", "QuantizeError", "dequantize", "get_type", "quantize", "to_float32"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'quantmill.qkernels' has no attribute {name!r}")
    from quantmill.qkernels import api

    found = getattr(api, name)
    globals()[name] = found
    return found
