"""Memory that was freed, given back to the system or used again by whoever needs it next."""

from __future__ import annotations

import ctypes
import sys

import torch

_ARENA_MAX = -8  # mallopt's number of it


def share_heap() -> None:
    """Let threads that begin from now on take memory from one heap, where the C library can (glibc): what a thread has
    freed would else stay with it, 60 MB a thread where two train a model of 135 M weights."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)


def device_bytes(device: torch.device) -> int | None:
    """All memory that a device has to itself, whoever uses it; None where it is the processor's, as Apple's is."""
    if device.type not in ("cuda", "xpu"):
        return None
    return int(getattr(torch, device.type).get_device_properties(device).total_memory)


def trim() -> None:
    """Give back what the C library keeps of freed memory, where it can (glibc): many small tensors of a phase that is
    over would stay beside those of the next."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
