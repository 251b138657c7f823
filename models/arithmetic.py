"""What a model is computed with, by name: torch's types, or float32 with shorter products."""

from __future__ import annotations

import torch

from quantmill.models.errors import ModelError
from quantmill.qkernels import products

_NEEDS = {products.BFLOAT16X3: "AMX (and a system that grants it)", products.INT16: "AVX512-VNNI"}


def automatic_dtype(device: torch.device) -> str:
    """What load() takes for dtype where numbers matter to 1e-4: as exact, and as fast, as the device allows."""
    kinds = products.served() if device.type == "cpu" else ()
    return kinds[0] if kinds else "float32"


def products_of(dtype: str) -> str | None:
    """The kind of qkernels.products that `dtype` names; None: products are of the type it names."""
    return dtype if dtype in _NEEDS else None


def require_dtype(name: str, device: torch.device) -> None:
    """Raises ModelError for a kind of products that is not served."""
    if name in _NEEDS and (device.type != "cpu" or name not in products.served()):
        raise ModelError(
            f"dtype {name}: needs a processor with {_NEEDS[name]}, and --device cpu; use float32 instead"
        )


def dtype_of(name: str) -> torch.dtype:
    known = {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
        **dict.fromkeys(_NEEDS, torch.float32),
    }
    if name not in known:
        raise ModelError(f"dtype {name!r}: choose one of {', '.join(known)}")
    return known[name]
