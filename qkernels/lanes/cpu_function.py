"""A compiled function over tiles: its code, what it needs of memory, and its constant tables."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from quantmill.qkernels.lanes.loader import sources
from quantmill.qkernels.lanes.native import ALIGNMENT, compile_module, fingerprint, kept, load


@dataclass(frozen=True)
class Compiled:
    """i32 drive(arrays…, numbers…, own, tables…); `own` is memory that a thread has to itself."""

    drive: Callable[..., int]
    own_bytes: int
    tables: tuple[np.ndarray, ...]

    def memory(self) -> np.ndarray:
        """What a thread needs to itself, aligned."""
        own = np.empty(self.own_bytes + ALIGNMENT, np.uint8)
        return own[-own.ctypes.data % ALIGNMENT :]

    def __call__(self, arrays: Sequence[np.ndarray | int], numbers: Sequence[int], own: np.ndarray) -> bool:
        """Arrays, or the addresses of memory that the caller keeps; whether the function returned 0."""
        given = (array if isinstance(array, int) else array.ctypes.data for array in arrays)
        return self.drive(*given, *numbers, own.ctypes.data, *(t.ctypes.data for t in self.tables)) == 0


@dataclass(frozen=True)
class Shape:
    """How a compiled function is called: how many arrays and numbers come before its own memory and tables."""

    arrays: int
    numbers: int


def compiled(
    name: str,
    facts: object,
    module: str,
    shape: Shape,
    own_bytes: int,
    tables: tuple[np.ndarray, ...],
    text: Callable[[], str],
) -> Compiled:
    """The function that `text` makes from a module of lane programs, from the cache where it is there.

    `facts`: what, besides the sources, decides about the code.
    """
    key = fingerprint(repr((name, facts)), sources(module))
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    parameters = [*[pointer] * shape.arrays, *[number] * shape.numbers, *[pointer] * (1 + len(tables))]
    code = kept(name, key, lambda: compile_module(text()))
    return Compiled(load(code, "drive", parameters), own_bytes, tables)


def table_kinds(tables: Sequence[np.ndarray]) -> tuple[str, ...]:
    """ "f32" or "i32" for each table."""
    return tuple("f32" if table.dtype == np.float32 else "i32" for table in tables)
