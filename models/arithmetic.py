"""What a model is computed with, by name: torch's types, or float32 with products of whole numbers."""

from __future__ import annotations

import torch

from quantmill.models.errors import ModelError
from quantmill.qkernels import products

WHOLE = "int16"  # what `dtype` is called where products are of whole numbers


def automatic_dtype(device: torch.device) -> str:
    """What load() takes for dtype where numbers matter to 1e-4: as exact, and as fast, as the device allows."""
    return WHOLE if device.type == "cpu" and products.are_served() else "float32"


def require_dtype(name: str, device: torch.device) -> None:
    """Raises ModelError for products of whole numbers where there are none."""
    if name == WHOLE and automatic_dtype(device) != WHOLE:
        raise ModelError(
            f"dtype {WHOLE}: needs a processor with AVX512-VNNI, and --device cpu; use float32 instead"
        )


def dtype_of(name: str) -> torch.dtype:
    known = {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
        WHOLE: torch.float32,
    }
    if name not in known:
        raise ModelError(f"dtype {name!r}: choose one of {', '.join(known)}")
    return known[name]
