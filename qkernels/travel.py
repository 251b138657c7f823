"""How stored rows get to a device and blocks back: each kind of device has its way, none changes a byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

# What is done with rows u8 on the device; the results come back.
Work = Callable[[torch.Tensor], Sequence[torch.Tensor]]


class Arriving(Protocol):
    def wait(self) -> list[np.ndarray]:
        """The results, in memory of the host, which stays theirs until the slab after the next is sent."""


class Travel(Protocol):
    def send(self, raw: np.ndarray, turn: int, work: Work) -> Arriving:
        """raw u8 [n_rows, row_bytes] → `work` on the device. `turn`: 0 or 1; buffers of a turn are used again."""


@dataclass(frozen=True)
class _Here:
    results: list[np.ndarray]

    def wait(self) -> list[np.ndarray]:
        return self.results


class Plain:
    """Copies that the host waits for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def send(self, raw: np.ndarray, turn: int, work: Work) -> Arriving:
        return _Here([result.cpu().numpy() for result in work(torch.tensor(raw, device=self._device))])


@dataclass(frozen=True)
class _Recorded:
    """Results that are there when an event has happened."""

    results: Sequence[torch.Tensor]
    event: Any

    def wait(self) -> list[np.ndarray]:
        self.event.synchronize()
        return [result.numpy() for result in self.results]


class Streams:
    """CUDA, ROCm, XPU: through pinned buffers on three streams. While one slab is searched, the next is uploaded and
    the one before it comes back."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._module: Any = getattr(torch, device.type)
        self._streams = [self._module.Stream(device) for _ in range(3)]
        self._pinned: dict[tuple[str, int], torch.Tensor] = {}

    def send(self, raw: np.ndarray, turn: int, work: Work) -> Arriving:
        upload, search, download = self._streams
        module = self._module
        waiting = self._buffer("in", turn, raw.size)
        np.copyto(waiting.numpy(), raw.reshape(-1))
        with module.device(self._device):
            with module.stream(upload):
                stored = waiting.to(self._device, non_blocking=True).view(raw.shape)
            search.wait_stream(upload)
            with module.stream(search):
                stored.record_stream(search)
                results = work(stored)
            download.wait_stream(search)
            with module.stream(download):
                arriving = [self._download(k, turn, result, download) for k, result in enumerate(results)]
                return _Recorded(arriving, download.record_event())

    def _download(self, number: int, turn: int, result: torch.Tensor, stream: Any) -> torch.Tensor:
        host = self._buffer(f"out {number}", turn, result.nbytes).view(result.dtype).view(result.shape)
        host.copy_(result, non_blocking=True)
        result.record_stream(stream)
        return host

    def _buffer(self, name: str, turn: int, size: int) -> torch.Tensor:
        """A pinned buffer of `size` bytes. Two turns: a slab's buffers rest until the slab before the last is done."""
        kept = self._pinned.get((name, turn))
        if kept is None or len(kept) < size:
            kept = self._pinned[name, turn] = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return kept[:size]


@dataclass(frozen=True)
class _Shared:
    """Results in memory that host and GPU share, and the GPU's own event. What is seen keeps the memory."""

    results: Sequence[torch.Tensor]
    event: Any

    def wait(self) -> list[np.ndarray]:
        self.event.synchronize()
        return [seen_by_host(result).numpy() for result in self.results]


class Shared:
    """Apple's GPUs see the host's memory: rows are written where the GPU reads them, blocks read where it wrote them.

    A buffer of a turn is written again only when the slab that used it is done, and the kernels that read it are
    handed to the GPU after it is written: so neither sees half of what the other does.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[int, torch.Tensor] = {}

    def send(self, raw: np.ndarray, turn: int, work: Work) -> Arriving:
        kept = self._buffers.get(turn)
        if kept is None or len(kept) < raw.size:
            kept = self._buffers[turn] = torch.empty(raw.size, dtype=torch.uint8, device=self._device)
        stored = kept[: raw.size]
        np.copyto(seen_by_host(stored).numpy(), raw.reshape(-1))
        results = [result.contiguous() for result in work(stored.view(raw.shape))]
        event = torch.mps.Event()
        event.record()
        return _Shared(results, event)


def seen_by_host(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a contiguous tensor on MPS as a tensor of the CPU; nothing is copied."""
    host = torch.empty(0, dtype=tensor.dtype)
    storage = torch.mps._host_alias_storage(tensor.untyped_storage())
    return host.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def travel_to(device: torch.device) -> Travel:
    """The way that torch allows for a device."""
    if device.type in ("cuda", "xpu"):
        return Streams(device)
    return Shared(device) if device.type == "mps" and _shares(device) else Plain(device)


def _shares(device: torch.device) -> bool:
    """Whether the host sees the device's memory: on Apple's own chips, and where torch tells."""
    if not hasattr(torch.mps, "_host_alias_storage"):
        return False
    try:
        seen_by_host(torch.empty(1, dtype=torch.uint8, device=device))
    except RuntimeError:
        return False
    return True
