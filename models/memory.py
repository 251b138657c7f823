"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
import sys


def trim() -> None:
    """Give back what the C library keeps of freed memory, where it can (glibc): many small tensors of a phase that is
    over would stay beside those of the next."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
