"""Where arrays of lanes lie in the memory that each thread has to itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quantmill.qkernels.lanes.native import ALIGNMENT, ELEMENT_BYTES, Processor


@dataclass(frozen=True)
class Layout:
    """Where arrays of lanes lie in a memory that each thread has to itself.

    places: name → offset in bytes and kind of elements, "f32", "i32" or "u8".
    """

    places: Mapping[str, tuple[int, str]]
    n_bytes: int


def layout_of(arrays: Mapping[str, tuple[int, str]], processor: Processor) -> Layout:
    """The layout of arrays given as name → elements, kind."""
    places, offset = {}, 0
    for name, (count, kind) in arrays.items():
        places[name] = offset, kind
        offset += -(-count * processor.width * ELEMENT_BYTES[kind] // ALIGNMENT) * ALIGNMENT
    return Layout(places, offset)
