"""Which lane program decodes which type."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping

from quantmill.qkernels.lanes.decoder import Decoder

_FAMILIES = ("small", "super_blocks", "codebook", "grid", "ternary", "checkpoint")


@functools.cache
def decoders() -> Mapping[str, Decoder]:
    """Type name → decoder, for every type that is not F32, F16 or BF16, of checkpoints too."""
    table: dict[str, Decoder] = {}
    for family in _FAMILIES:
        table.update(importlib.import_module(f"quantmill.qkernels.decode.{family}").DECODERS)
    return table
