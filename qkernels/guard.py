"""What is done about a device that fails, or gives wrong bytes; the work itself is in guarded.py."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass


def _warn(line: str) -> None:
    warnings.warn(line, RuntimeWarning, stacklevel=2)


@dataclass(frozen=True)
class Guard:
    """How faults are dealt with: who is told, whether one is an error, how long a device may take.

    `first_seconds` for the first work on a type, which compiles its kernels; `seconds` for each slab after it.
    """

    tell: Callable[[str], None] = _warn
    strict: bool = False
    first_seconds: float = 600
    seconds: float = 60
