"""How much of a device's work is compared with the CPU engine's while a run goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

# Blocks of a case's first slab that are compared at least.
FIRST_BLOCKS = 768
# Rows of a slab: with importance the CPU engine searches sixteen side by side, so fewer would cost as much.
ROWS = 16
# Of the time that a device has worked, how much comparing may take.
SHARE = 0.01


def spread(n_rows: int, count: int) -> np.ndarray:
    """`count` rows of so many, or all of fewer: the first, the last, and others as far apart as they can be."""
    return np.unique(np.linspace(0, n_rows - 1, min(count, n_rows)).astype(int))


@dataclass
class Samples:
    """What the quantizers of one device have compared. A case is a type, with or without importance.

    `worked`, `compared`: seconds of the device and of its samples, but for each case's first slab, whose kernels may
    have to be compiled. `latest`: seconds of the latest sample, which the next may need too.
    """

    worked: float = 0.0
    compared: float = 0.0
    latest: float = 0.0
    _seen: set[str] = field(default_factory=set)
    _lock: Any = field(default_factory=threading.Lock)

    def rows(
        self, case: str, n_rows: int, row_blocks: int, seconds: float, compare: Callable[[np.ndarray], None]
    ) -> None:
        """Has some rows of a slab compared: of a case's first slab always, then as long as all that costs no more than
        a hundredth of what the device has worked, with the `seconds` for this slab."""
        with self._lock:
            first = case not in self._seen
            self._seen.add(case)
            self.worked += 0 if first else seconds
            if not first and self.compared + self.latest > SHARE * self.worked:
                return
        count = max(ROWS, -(-FIRST_BLOCKS // row_blocks)) if first else ROWS
        began = perf_counter()
        compare(spread(n_rows, count))
        if first:
            return
        with self._lock:
            self.latest = perf_counter() - began
            self.compared += self.latest
