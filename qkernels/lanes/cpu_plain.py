"""The CPU engine's conversions between F32, F16 and BF16: compiled, and shared by a pool of threads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np

from quantmill.qkernels.lanes.cpu_threads import spread
from quantmill.qkernels.lanes.native import Processor, functions
from quantmill.qkernels.plain import ELEMENTS


@functools.cache
def _functions(processor: Processor) -> dict[str, Callable[..., int]]:
    def text() -> str:
        from quantmill.qkernels.lanes.cpu_plain_driver import text_of

        return text_of(processor)

    shapes = {f"{source}_to_{target}": (2, 2) for source in ELEMENTS for target in ELEMENTS}
    return functions("plain", text, shapes, processor)


def convert(
    numbers: np.ndarray, source: str, out: np.ndarray, target: str, n_threads: int, processor: Processor
) -> bool:
    """numbers of the plain type `source` → out, as many of `target`, both contiguous: to the nearest, ties to even,
    sub-normals kept. Whether all that is in `out` is finite."""
    function = _functions(processor)[f"{source}_to_{target}"]
    n = numbers.nbytes // np.dtype(ELEMENTS[source]).itemsize
    given, made = numbers.ctypes.data, out.ctypes.data
    bad: list[int] = []

    def work(bounds: Iterator[tuple[int, int]]) -> None:
        bad.extend(begin for begin, end in bounds if function(given, made, begin, end))

    spread(n_threads, work, n, 1)
    return not bad
