"""Stored rows in one type to stored rows in another: the same two steps on the CPU and on a device."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from quantmill.qkernels.api import quantize_stored
from quantmill.qkernels.engines import Engine


class RowQuantizer(Protocol):
    """Stored rows u8 [n_rows, row_bytes] of one type → rows of another, on one device, for one worker.

    `load` runs in the reading thread and gives `quantize`, in the worker's, what it wants: so reading and decoding
    overlap with the search. Both raise QuantizeError as `qkernels.quantize` does.
    """

    def load(self, raw: np.ndarray, source_type: str) -> np.ndarray: ...

    def quantize(
        self, loaded: np.ndarray, source_type: str, type: str, importance: np.ndarray | None
    ) -> np.ndarray: ...


class _CpuQuantizer:
    def __init__(self, threads: int | None) -> None:
        self._threads = threads

    def load(self, raw: np.ndarray, source_type: str) -> np.ndarray:
        return np.array(raw)  # reads the file here, not in the worker

    def quantize(
        self, loaded: np.ndarray, source_type: str, type: str, importance: np.ndarray | None
    ) -> np.ndarray:
        return quantize_stored(loaded, source_type, type, importance, self._threads)


class _DeviceQuantizer:
    """Rows go to the device as they are stored; float32 exists there only."""

    def __init__(self, engine: Engine) -> None:
        from quantmill.qkernels.device import DeviceQuantizer  # imports torch

        self._device = DeviceQuantizer(engine)

    def load(self, raw: np.ndarray, source_type: str) -> np.ndarray:
        return np.array(raw)  # reads the file here, not in the worker

    def quantize(
        self, loaded: np.ndarray, source_type: str, type: str, importance: np.ndarray | None
    ) -> np.ndarray:
        return self._device.quantize(loaded, source_type, type, importance)


def row_quantizers(engine: Engine, threads: int | None = None) -> list[RowQuantizer]:
    """The quantizers that share the work of an engine; `threads` are those of the cpu engine, None for all cores.

    Two for a GPU: while one waits for its rows to come back, the other's are on their way or being searched.
    """
    if engine.name == "cpu":
        return [_CpuQuantizer(threads)]
    return [_DeviceQuantizer(engine) for _ in range(2 if engine.device.startswith(("cuda", "xpu")) else 1)]
