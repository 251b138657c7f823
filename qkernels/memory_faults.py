"""When a device has no memory left: smaller slabs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from quantmill.qkernels.torch_errors import is_out_of_memory

Sent = TypeVar("Sent")


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
