"""Which lane programs encode which type."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping

from quantmill.qkernels.lanes.encoder import Encoder
from quantmill.qkernels.types import Search, get_type

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
        table.update(_of_family(family))
    return table


def _of_family(family: str) -> Mapping[tuple[str, bool], Encoder]:
    found: Mapping[tuple[str, bool], Encoder]
    found = importlib.import_module(f"quantmill.qkernels.programs.{family}").ENCODERS
    return found


@functools.cache
def encoder_of(type_name: str, weighted: bool, search: Search = "default") -> Encoder:
    """The encoder of a type; importance is ignored by types that have no use for it.

    Types without a thorough search have the default's. Imports no family but those that may have it, its own first.
    """
    if search != "default" and (type_name, weighted) in encoders(search):
        return encoders(search)[type_name, weighted]
    type = get_type(type_name)
    wanted = type_name, weighted and type.importance != "none"
    for family in sorted(_FAMILIES["default"], key=lambda family: family != type.family):
        if found := _of_family(family).get(wanted):
            return found
    raise AssertionError(f"no encoder for {type_name}")
