"""How much of a device's work is compared with the CPU engine's while a run goes on.

Of a case's first slab many blocks, at once. Of each slab after it a few are laid aside, and compared when there are so
many that the calls cost little, or at the end of the run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from quantmill.qkernels.types import QuantType

# Blocks of a case's first slab that are compared at least.
FIRST_BLOCKS = 768
# Rows of it: with importance the CPU engine searches sixteen side by side, so fewer would cost as much.
ROWS = 16
# Of the time that a device has worked, how much comparing may take.
SHARE = 0.01
# Parts of rows that are taken of one slab at most, and that are laid aside before they are compared.
MOST, ENOUGH = 64, 64
_FAR_LONGER = 4  # times what was expected: then something else had the processor
_COLD = 2  # times what the same takes right after another comparison, when nothing has to be fetched
_TURN = (5**0.5 - 1) / 2  # slab after slab other parts, evenly


def spread(n_rows: int, count: int) -> np.ndarray:
    """`count` rows of so many, or all of fewer: the first, the last, and others as far apart as they can be."""
    return np.unique(np.linspace(0, n_rows - 1, min(count, n_rows)).astype(int))


@dataclass(frozen=True, eq=False)
class Kind:
    """What can be compared together: rows of n_cols weights in the type `source` that became `target`. A case is a
    target, with or without importance. whole: the type asks for the mean square of a row."""

    case: str
    source: QuantType
    target: QuantType
    n_cols: int
    whole: bool

    @property
    def n_weights(self) -> int:
        """Of a part of a row, which is a block of either type."""
        return max(self.source.block, self.target.block)


class Slab(NamedTuple):
    """Rows as they were stored and as a device made them, u8 [n_rows, row_bytes], importance f32 [n_cols] or None."""

    raw: np.ndarray
    made: np.ndarray
    importance: np.ndarray | None


class Parts:
    """Parts of rows, and the rows that they are of where these are asked for. expected: seconds that comparing them
    will take."""

    def __init__(self, kind: Kind) -> None:
        self.kind, self.expected = kind, 0.0
        self._per_row = kind.n_cols // kind.n_weights
        self._stored: list[bytes] = []
        self._made: list[bytes] = []
        self._importance: list[bytes] = []
        self._rows: list[bytes] = []

    def __len__(self) -> int:
        return len(self._stored)

    def add(self, slab: Slab, chosen: Iterable[int]) -> None:
        """chosen: numbers of parts, counted along the rows. Bytes are copied faster than arrays are."""
        raw, made, importance = slab
        a, b = raw.shape[1] // self._per_row, made.shape[1] // self._per_row
        c = self.kind.n_weights
        for number in chosen:
            row, i = divmod(number, self._per_row)
            self._stored.append(raw[row, i * a : i * a + a].tobytes())
            self._made.append(made[row, i * b : i * b + b].tobytes())
            if importance is not None:
                self._importance.append(importance[i * c : i * c + c].tobytes())
            if self.kind.whole:
                self._rows.append(raw[row].tobytes())

    @property
    def stored(self) -> np.ndarray:
        """u8 [n, bytes]."""
        return _array(self._stored, np.uint8)

    @property
    def made(self) -> np.ndarray:
        """u8 [n, bytes]."""
        return _array(self._made, np.uint8)

    @property
    def importance(self) -> np.ndarray | None:
        """f32 [n, n_weights]."""
        return _array(self._importance, np.float32) if self._importance else None

    @property
    def rows(self) -> np.ndarray | None:
        """u8 [n, row_bytes]."""
        return _array(self._rows, np.uint8) if self._rows else None


def _array(parts: list[bytes], kind: Any) -> np.ndarray:
    return np.frombuffer(b"".join(parts), kind).reshape(len(parts), -1)


# Raises where the parts are not what the CPU makes.
Compare = Callable[[Parts], None]


@dataclass
class Samples:
    """What the quantizers of one device have compared, and what they have laid aside.

    `worked`, `compared`: seconds of the device and of its samples, with those expected of what is laid aside; but for
    each case's first slab, whose kernels may have to be compiled. `slabs`, `sampled`: how many there were after these,
    and of how many something was compared.
    """

    worked: float = 0.0
    compared: float = 0.0
    slabs: int = 0
    sampled: int = 0
    # Of a case, seconds in which a part is compared, and those that comparing few takes at all.
    _each: dict[str, float] = field(default_factory=dict)
    _least: dict[str, float] = field(default_factory=dict)
    _aside: dict[Kind, Parts] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.Lock)

    def is_first(self, case: str) -> bool:
        """Asked once for each slab. Whether it is the first of its case."""
        with self._lock:
            if case in self._each:
                return False
            self._each[case] = 0.0
            return True

    def begin(self, kind: Kind, slab: Slab, compare: Compare) -> None:
        """Compare parts of a case's first slab, and learn what that takes when all is compiled."""
        parts, few = Parts(kind), Parts(kind)
        parts.add(slab, self._choice(kind, len(slab.raw), MOST))
        few.add(slab, [0])
        compare(parts)
        began = perf_counter()
        compare(parts)
        between = perf_counter()
        compare(few)
        with self._lock:
            self._each[kind.case] = (between - began) / len(parts)
            self._least[kind.case] = _COLD * (perf_counter() - between)

    def take(self, kind: Kind, slab: Slab, seconds: float, compare: Compare) -> None:
        """Lay parts of a slab aside: one, unless a hundredth of the time that the device has worked is used up, with
        the `seconds` for this slab; and more where so much of it is left that the next slabs will have theirs."""
        began = perf_counter()
        with self._lock:
            self.worked += seconds
            self.slabs += 1
            left, each = SHARE * self.worked - self.compared, self._each[kind.case]
            # a run may end after this slab, and then these few are compared by themselves
            least = 0.0 if kind in self._aside else self._least.get(kind.case, 0.0)
            if left < each + least:
                return
            self.sampled += 1
            parts = self._aside.get(kind) or self._aside.setdefault(kind, Parts(kind))
            left -= least
            spare = left / each - ENOUGH if each else 0
            count = int(min(MOST, 1 + max(0, spare / 2)))
            parts.add(slab, self._choice(kind, len(slab.raw), count))
            parts.expected += least + count * each
            is_enough = len(parts) >= ENOUGH
            if is_enough:
                del self._aside[kind]
            self.compared += perf_counter() - began + least + count * each
        if is_enough:
            self._compare(parts, compare)

    def finish(self, compare: Compare) -> None:
        """Compare what was laid aside."""
        with self._lock:
            aside, self._aside = self._aside, {}
        for parts in aside.values():
            self._compare(parts, compare)

    def _choice(self, kind: Kind, n_rows: int, count: int) -> list[int]:
        """Parts of a slab, as far apart as they can be."""
        n_parts = n_rows * (kind.n_cols // kind.n_weights)
        count = min(count, n_parts)
        first = int(self.slabs * _TURN % 1.0 * n_parts)
        return [(first + i * n_parts // count) % n_parts for i in range(count)]

    def _compare(self, parts: Parts, compare: Compare) -> None:
        began = perf_counter()
        compare(parts)
        took = min(perf_counter() - began, _FAR_LONGER * parts.expected)
        with self._lock:
            self.compared += took - parts.expected
            if len(parts) >= ENOUGH:  # of fewer the calls are a larger share
                self._each[parts.kind.case] = took / len(parts)
