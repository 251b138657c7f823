"""Which lane programs encode which type."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping

from quantmill.qkernels.lanes.encoder import Encoder

_FAMILIES = ("rounding", "scale", "scale_min", "ternary", "fp4", "codebook", "grid", "ternary_grid")


@functools.cache
def encoders() -> Mapping[tuple[str, bool], Encoder]:
    """(type name, with importance) → encoder; types that ignore importance stand under False only."""
    table: dict[tuple[str, bool], Encoder] = {}
    for family in _FAMILIES:
        table.update(importlib.import_module(f"quantmill.qkernels.programs.{family}").ENCODERS)
    return table


def encoder_of(type_name: str, weighted: bool) -> Encoder:
    """The encoder of a type; importance is ignored by types that have no use for it."""
    table = encoders()
    found = table.get((type_name, weighted)) or table.get((type_name, False))
    assert found is not None, f"no encoder for {type_name}"
    return found
