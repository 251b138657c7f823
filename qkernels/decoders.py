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
        table.update(_of_family(family))
    return table


@functools.cache
def decoder_of(type_name: str) -> Decoder:
    """The decoder of a type. Imports no more families than it takes to find it."""
    return next(found for family in _FAMILIES if (found := _of_family(family).get(type_name)))


def _of_family(family: str) -> Mapping[str, Decoder]:
    found: Mapping[str, Decoder] = importlib.import_module(f"quantmill.qkernels.decode.{family}").DECODERS
    return found
