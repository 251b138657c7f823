"""Numbers to blocks and back: every ggml type, on every machine. Knows no files and no models."""

from quantmill.qkernels.api import dequantize, quantize, to_float32
from quantmill.qkernels.types import TYPES, QuantizeError, QuantType, get_type

__all__ = ["TYPES", "QuantType", "QuantizeError", "dequantize", "get_type", "quantize", "to_float32"]
