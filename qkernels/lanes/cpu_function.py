"""A compiled function over tiles: its code, what it needs of memory, and its constant tables."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from quantmill.qkernels.lanes.loader import sources
from quantmill.qkernels.lanes.native import ALIGNMENT, Processor, compile_module, fingerprint, kept, load


@dataclass(frozen=True)
class Compiled:
    """i32 drive(arrays…, numbers…, own, tables…); `own` is memory that a thread has to itself, column_bytes of it for
    each column of the rows."""

    drive: Callable[..., int]
    own_bytes: int
    tables: tuple[np.ndarray, ...]
    column_bytes: int = 0

    def memory(self, n_cols: int = 0) -> np.ndarray:
        """What a thread needs to itself for rows of n_cols, aligned."""
        own = np.empty(self.own_bytes + n_cols * self.column_bytes + ALIGNMENT, np.uint8)
        return own[-own.ctypes.data % ALIGNMENT :]

    @functools.cached_property
    def _tables(self) -> tuple[int, ...]:
        return tuple(table.ctypes.data for table in self.tables)

    def at(self, addresses: Sequence[int], numbers: Sequence[int], own: int) -> int:
        """What the function returns, called with the addresses of memory that the caller keeps."""
        return self.drive(*addresses, *numbers, own, *self._tables)

    def __call__(self, arrays: Sequence[np.ndarray], numbers: Sequence[int], own: np.ndarray) -> int:
        return self.at([array.ctypes.data for array in arrays], numbers, own.ctypes.data)


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
    processor: Processor,
    column_bytes: int = 0,
) -> Compiled:
    """The function that `text` makes from a module of lane programs, from the cache where it is there.

    `facts`: what, besides the sources, decides about the code.
    """
    key = fingerprint(repr((name, facts)), sources(module), processor)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    parameters = [*[pointer] * shape.arrays, *[number] * shape.numbers, *[pointer] * (1 + len(tables))]
    code = kept(name, key, lambda: compile_module(text(), processor))
    return Compiled(load(code, "drive", parameters, processor), own_bytes, tables, column_bytes)


def table_kinds(tables: Sequence[np.ndarray]) -> tuple[str, ...]:
    """ "f32" or "i32" for each table."""
    return tuple("f32" if table.dtype == np.float32 else "i32" for table in tables)
