"""When a device has no memory left: what its errors look like, and smaller slabs."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

Sent = TypeVar("Sent")


def is_out_of_memory(error: BaseException) -> bool:
    """torch's own error is one of CUDA and XPU; on MPS it is a RuntimeError that says so."""
    return error.__class__.__name__ == "OutOfMemoryError" or "out of memory" in str(error).lower()


_ASKED = re.compile(r"ried to allocate ([\d.]+ ?\w+)")


def out_of_memory(error: BaseException) -> str:
    """Whose memory is not enough and what helps, where that is what an error of torch says; "" for another error."""
    on_device = is_out_of_memory(error)
    if not on_device and "DefaultCPUAllocator" not in str(error):
        return ""
    asked = _ASKED.search(str(error))
    more = f": {asked[1]} more were asked for" if asked else ""
    owner, first = ("the device", "--device cpu, ") if on_device else ("this machine", "fewer --threads, ")
    return f"{owner} has not enough memory{more}; {first}a smaller --ctx, or --stream where there is one, may help"


def in_slabs(
    n_rows: int,
    step: int,
    send: Callable[[int, int, int], Sent],
    finish: Callable[[int, int, Sent], None],
    free: Callable[[], Any],
) -> None:
    """All rows, `step` at a time: send(first row, how many, 0 or 1 in turn), then finish; two are under way.

    Where memory is not enough, what is under way is finished, and slabs of half the rows follow; `free` gives back
    what torch keeps. Raises as `send` and `finish` do, for want of memory only when a single row is too much.
    """
    under_way: deque[tuple[int, int, Sent]] = deque()
    first = number = 0
    while first < n_rows:
        n = min(step, n_rows - first)
        try:
            sent = send(first, n, number % 2)
        except RuntimeError as error:
            if not is_out_of_memory(error) or n == 1:
                raise
            step = n // 2
        else:
            under_way.append((first, n, sent))
            first, number = first + n, number + 1
            if len(under_way) == 2:
                finish(*under_way.popleft())
            continue
        while under_way:
            finish(*under_way.popleft())
        free()
    for slab in under_way:
        finish(*slab)
