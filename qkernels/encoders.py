"""Which lane programs encode which type."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping

from quantmill.qkernels.lanes.encoder import Encoder
from quantmill.qkernels.types import Search

# The modules of programs that belong to a search.
_FAMILIES: Mapping[Search, tuple[str, ...]] = {
    "default": ("rounding", "scale", "scale_min", "ternary", "fp4", "codebook", "grid", "ternary_grid"),
    "thorough": (
        "thorough_scale",
        "thorough_super_scale",
        "thorough_scale_min",
        "thorough_fp4",
        "thorough_grid",
        "thorough_ternary_grid",
    ),
}


@functools.cache
def encoders(search: Search = "default") -> Mapping[tuple[str, bool], Encoder]:
    """(type name, with importance) → encoder; types that ignore importance stand under False only."""
    table: dict[tuple[str, bool], Encoder] = {}
    for family in _FAMILIES[search]:
        table.update(importlib.import_module(f"quantmill.qkernels.programs.{family}").ENCODERS)
    return table


def encoder_of(type_name: str, weighted: bool, search: Search = "default") -> Encoder:
    """The encoder of a type; importance is ignored by types that have no use for it.

    Types without a thorough search have the default's.
    """
    if search != "default" and (type_name, weighted) in encoders(search):
        return encoders(search)[type_name, weighted]
    table = encoders()
    found = table.get((type_name, weighted)) or table.get((type_name, False))
    assert found is not None, f"no encoder for {type_name}"
    return found
