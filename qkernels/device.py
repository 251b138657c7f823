"""Rows through an engine that works on torch tensors: slabs that fit the device, copies that overlap the search."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from quantmill.qkernels.api import dequantize, to_float32
from quantmill.qkernels.checks import checked_importance, require_finite, require_finite_scales
from quantmill.qkernels.decoders import decoders
from quantmill.qkernels.encoders import encoder_of
from quantmill.qkernels.engines import Engine, EngineRow
from quantmill.qkernels.lanes.tensors import bytes_per_block
from quantmill.qkernels.types import QuantizeError, QuantType, Search, get_type, readable_type

# Without a GPU small slabs are fastest: their arrays stay in the cache.
_CPU_SLAB_BYTES = 1 << 23
# Of a device's free memory for the arrays of one slab. Two quantizers share a GPU; the rest is for rows on their way.
_SHARE = 0.3
# Enough threads for the largest GPU, few enough that what the driver hands over at a time makes several slabs.
_MOST_WEIGHTS = 1 << 22


def encode_rows(
    engine: EngineRow,
    type: QuantType,
    rows: torch.Tensor,
    importance: torch.Tensor | None,
    search: Search,
) -> torch.Tensor:
    """rows [n_rows, n_cols] f32 → [n_rows, row_bytes] u8 on the same device, all at once and unchecked."""
    if type.family == "plain":
        return _narrow(rows, type)
    encoder = encoder_of(type.name, importance is not None, search)
    return engine.lanes(engine.encoder).encode(type, encoder, rows, importance)


def decode(engine: EngineRow, type: QuantType, raw: torch.Tensor, numbers: torch.Tensor, to: str) -> None:
    """raw u8 [n, bytes] → numbers [n, block] of the type `to`, on one device."""
    engine.lanes(engine.decoder).decode(type, decoders()[type.name], raw, numbers)


def _narrow(rows: torch.Tensor, type: QuantType) -> torch.Tensor:
    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return rows.to(kinds[type.name]).contiguous().view(torch.uint8)


def slab_rows(
    type: QuantType, n_cols: int, weighted: bool, device: torch.device, search: Search = "default"
) -> int:
    """How many rows of `n_cols` weights to encode at a time on a device."""
    if type.family == "plain":
        per_row = 8 * n_cols
    else:
        encoder = encoder_of(type.name, weighted, search)
        per_row = n_cols // type.block * bytes_per_block(type, encoder)
    return max(1, min(_slab_bytes(device) // per_row, _MOST_WEIGHTS // n_cols))


def _slab_bytes(device: torch.device) -> int:
    return _BUDGETS[device.type](device)


def _share_of_mps(device: torch.device) -> int:
    free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return int(_SHARE * free)


def _share_of_gpu(device: torch.device) -> int:
    module = _module(device)
    unused = module.memory_reserved(device) - module.memory_allocated(device)
    return int(_SHARE * (module.mem_get_info(device)[0] + unused))


# Bytes for the arrays of one slab, by kind of device.
_BUDGETS: Mapping[str, Callable[[torch.device], int]] = {
    "cpu": lambda device: _CPU_SLAB_BYTES,
    "mps": _share_of_mps,
    "cuda": _share_of_gpu,
    "xpu": _share_of_gpu,
}


def _module(device: torch.device) -> Any:
    return getattr(torch, device.type)


def quantize(
    engine: EngineRow,
    rows: Any,
    type: QuantType,
    importance: np.ndarray | None,
    threads: int | None,
    search: Search,
) -> Any:
    """A tensor stays on its device; an array goes to the first device that the engine serves before the CPU."""
    if isinstance(rows, np.ndarray):
        tensor = torch.tensor(rows, device=_default_device(engine))
        return quantize(engine, tensor, type, importance, threads, search).cpu().numpy()
    weights = None if importance is None else torch.tensor(importance, device=rows.device)
    n_rows, n_cols = rows.shape
    out = torch.empty((n_rows, type.row_bytes(n_cols)), dtype=torch.uint8, device=rows.device)

    def start(first: int, n: int, turn: int) -> _Slab:
        slab = rows[first : first + n].contiguous()
        blocks = encode_rows(engine, type, slab, weights, search)
        return _Slab(first, blocks, torch.isfinite(slab).all(), None)

    def finish(slab: _Slab) -> None:
        n = len(slab.blocks)
        if not bool(slab.finite):
            require_finite(rows[slab.first : slab.first + n].cpu().numpy(), slab.first)
        out[slab.first : slab.first + n] = slab.blocks

    step = slab_rows(type, n_cols, weights is not None, rows.device, search)
    _in_slabs(n_rows, step, start, finish)
    require_finite_scales(out.cpu().numpy(), type)
    return out


def _in_slabs(
    n_rows: int, step: int, start: Callable[[int, int, int], _Slab], finish: Callable[[_Slab], None]
) -> None:
    """All rows, `step` at a time: start(first row, how many, 0 or 1 in turn), then finish; two are under way."""
    under_way: deque[_Slab] = deque()
    for number, first in enumerate(range(0, n_rows, step)):
        under_way.append(start(first, min(step, n_rows - first), number % 2))
        if len(under_way) == 2:
            finish(under_way.popleft())
    for slab in under_way:
        finish(slab)


def _default_device(engine: EngineRow) -> torch.device:
    if "cpu" in engine.serves or engine.lanes(engine.encoder).INTERPRETED:
        return torch.device("cpu")
    found = torch.accelerator.current_accelerator()
    if found is None or found.type not in engine.serves:
        raise QuantizeError(f"engine {engine.name} needs a CUDA, ROCm or XPU device; choose the cpu engine")
    return found


@dataclass(frozen=True)
class _Slab:
    """A slab under way: its place, and where its blocks and the answer "all weights finite" are going to be."""

    first: int
    blocks: torch.Tensor
    finite: torch.Tensor
    done: Any


class DeviceQuantizer:
    """Quantizes stored rows on one device, for one thread.

    Rows travel as they are stored (half the bytes for F16 and BF16) and become float32 on the device. On a GPU they
    pass through pinned buffers on three streams: while one slab is searched, the next is uploaded and the one before
    it comes back. Slabs never change a byte.
    """

    def __init__(self, engine: Engine, search: Search = "default") -> None:
        self.engine, self.search = engine, search
        self._device = torch.device(engine.device)
        self._pinned: dict[tuple[str, int], torch.Tensor] = {}
        self._streams: list[Any] = []
        if self._device.type in ("cuda", "xpu"):
            self._streams = [_module(self._device).Stream(self._device) for _ in range(3)]

    def quantize(
        self, raw: np.ndarray, source_type: str, type: str, importance: np.ndarray | None = None
    ) -> np.ndarray:
        """raw u8 [n_rows, row_bytes] in `source_type`, importance [n_cols] f32 or None → u8 [n_rows, row_bytes].

        Raises QuantizeError as `qkernels.quantize` does.
        """
        source, target = readable_type(source_type), get_type(type)
        n_rows, n_cols = len(raw), raw.shape[1] // source.bytes * source.block
        checked = checked_importance(importance, n_cols, target, self.search)
        weights = None if checked is None else torch.tensor(checked, device=self._device)
        out = np.empty((n_rows, target.row_bytes(n_cols)), np.uint8)

        def start(first: int, n: int, turn: int) -> _Slab:
            return self._start(raw[first : first + n], first, turn, source, target, weights)

        step = slab_rows(target, n_cols, weights is not None, self._device, self.search)
        _in_slabs(n_rows, step, start, lambda slab: self._finish(slab, raw, source, out))
        require_finite_scales(out, target)
        return out

    def load(self, raw: np.ndarray, source_type: str) -> np.ndarray:
        return np.array(raw)  # reads the file here, not in the worker

    def _start(
        self,
        raw: np.ndarray,
        first: int,
        turn: int,
        source: QuantType,
        target: QuantType,
        weights: torch.Tensor | None,
    ) -> _Slab:
        if not self._streams:
            rows = dequantize(torch.tensor(raw, device=self._device), source.name)
            blocks = encode_rows(self.engine.row, target, rows, weights, self.search)
            return _Slab(first, blocks.cpu(), torch.isfinite(rows).all().cpu(), None)
        upload, search, download = self._streams
        module = _module(self._device)
        waiting = self._buffer("in", turn, raw.size)
        np.copyto(waiting.numpy(), raw.reshape(-1))
        with module.device(self._device):
            with module.stream(upload):
                stored = waiting.to(self._device, non_blocking=True).view(raw.shape)
            search.wait_stream(upload)
            with module.stream(search):
                stored.record_stream(search)
                rows = dequantize(stored, source.name)
                blocks = encode_rows(self.engine.row, target, rows, weights, self.search)
                finite = torch.isfinite(rows).all().to(torch.uint8).view(1)
            download.wait_stream(search)
            with module.stream(download):
                host = self._buffer("out", turn, blocks.numel()).view(blocks.shape)
                host.copy_(blocks, non_blocking=True)
                answer = self._buffer("finite", turn, 1).copy_(finite, non_blocking=True)
                blocks.record_stream(download)
                finite.record_stream(download)
                return _Slab(first, host, answer, download.record_event())

    def _finish(self, slab: _Slab, raw: np.ndarray, source: QuantType, out: np.ndarray) -> None:
        if slab.done is not None:
            slab.done.synchronize()
        n_rows = len(slab.blocks)
        if not bool(slab.finite):
            require_finite(to_float32(raw[slab.first : slab.first + n_rows], source.name), slab.first)
        out[slab.first : slab.first + n_rows] = slab.blocks.numpy()

    def _buffer(self, name: str, turn: int, size: int) -> torch.Tensor:
        """A pinned buffer of `size` bytes. Two turns: a slab's buffers rest until the slab before the last is done."""
        kept = self._pinned.get((name, turn))
        if kept is None or len(kept) < size:
            kept = self._pinned[name, turn] = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return kept[:size]


def quantizer(engine: Engine, threads: int | None, search: Search) -> DeviceQuantizer:
    """What an assembly line quantizes with; a device has threads of its own."""
    return DeviceQuantizer(engine, search)
