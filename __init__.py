"""quantmill turns a language model into the best GGUF its owner can run.

quantize, dequantize: arrays, with llama.cpp's bytes. TYPES, get_type: the types there are. open_gguf: look into a file.
convert, quantize_model, polish, collect_imatrix, evaluate: whole models, as the commands of the same names do it.
Every error that input can cause is a QuantmillError. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantmill.api import convert, dequantize, open_gguf, quantize, quantize_model
    from quantmill.api_models import collect_imatrix, evaluate, polish
    from quantmill.errors import QuantmillError
    from quantmill.qkernels.types import TYPES, get_type

__version__ = "0.1.0"

__all__ = [
    "TYPES",
    "QuantmillError",
    "__version__",
    "collect_imatrix",
    "convert",
    "dequantize",
    "evaluate",
    "get_type",
    "open_gguf",
    "polish",
    "quantize",
    "quantize_model",
]

_HOME = {
    "QuantmillError": "errors",
    "TYPES": "qkernels.types",
    "get_type": "qkernels.types",
    **dict.fromkeys(("collect_imatrix", "evaluate", "polish"), "api_models"),
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'quantmill' has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(f"quantmill.{_HOME.get(name, 'api')}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
