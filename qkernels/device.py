"""Rows through an engine that works on torch tensors: slabs that fit the device, copies that overlap the search."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch

from quantmill.qkernels import plain
from quantmill.qkernels.api import dequantize
from quantmill.qkernels.encoders import encoder_of
from quantmill.qkernels.engines import Engine
from quantmill.qkernels.lanes.tensors import bytes_per_block
from quantmill.qkernels.types import QuantizeError, QuantType, get_type

# Without a GPU small slabs are fastest: their arrays stay in the cache.
_CPU_SLAB_BYTES = 1 << 23
# Of a device's free memory for the arrays of one slab. Two quantizers share a GPU; the rest is for rows on their way.
_SHARE = 0.3
# Enough threads for the largest GPU, few enough that what the driver hands over at a time makes several slabs.
_MOST_WEIGHTS = 1 << 22


def encode_rows(
    type: QuantType, rows: torch.Tensor, importance: torch.Tensor | None, engine: str
) -> torch.Tensor:
    """rows [n_rows, n_cols] f32 → [n_rows, row_bytes] u8 on the same device, all at once and unchecked."""
    if type.family == "plain":
        return _narrow(rows, type)
    weighted = importance is not None and type.importance != "none"
    encoder = encoder_of(type.name, weighted)
    if engine == "triton":
        from quantmill.qkernels.lanes import triton as lanes
    else:
        from quantmill.qkernels.lanes import torch as lanes  # type: ignore[no-redef]
    return lanes.encode(type, encoder, rows, importance if weighted else None)


def _narrow(rows: torch.Tensor, type: QuantType) -> torch.Tensor:
    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return rows.to(kinds[type.name]).contiguous().view(torch.uint8)


def slab_rows(type: QuantType, n_cols: int, weighted: bool, device: torch.device) -> int:
    """How many rows of `n_cols` weights to encode at a time on a device."""
    if type.family == "plain":
        per_row = 8 * n_cols
    else:
        encoder = encoder_of(type.name, weighted and type.importance != "none")
        per_row = n_cols // type.block * bytes_per_block(type, encoder)
    return max(1, min(_slab_bytes(device) // per_row, _MOST_WEIGHTS // n_cols))


def _slab_bytes(device: torch.device) -> int:
    if device.type == "cpu":
        return _CPU_SLAB_BYTES
    if device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    else:
        module = _module(device)
        unused = module.memory_reserved(device) - module.memory_allocated(device)
        free = module.mem_get_info(device)[0] + unused
    return int(_SHARE * free)


def _module(device: torch.device) -> Any:
    return torch.xpu if device.type == "xpu" else torch.cuda


@overload
def quantize_tensor(
    rows: torch.Tensor, type: QuantType, importance: torch.Tensor | None, engine: str
) -> torch.Tensor: ...
@overload
def quantize_tensor(
    rows: np.ndarray, type: QuantType, importance: np.ndarray | None, engine: str
) -> np.ndarray: ...
def quantize_tensor(
    rows: torch.Tensor | np.ndarray,
    type: QuantType,
    importance: torch.Tensor | np.ndarray | None,
    engine: str,
) -> torch.Tensor | np.ndarray:
    """What `qkernels.quantize` does on the torch and triton engines: a tensor stays on its device.

    numpy rows are taken to the CPU by the torch engine and to the first GPU by the triton engine.
    """
    if isinstance(rows, np.ndarray):
        device = _gpu() if engine == "triton" else torch.device("cpu")
        tensor = torch.tensor(rows, device=device)
        weights = None if importance is None else torch.tensor(np.asarray(importance), device=device)
        return quantize_tensor(tensor, type, weights, engine).cpu().numpy()
    if importance is not None:
        importance = torch.as_tensor(importance, dtype=torch.float32, device=rows.device)
        plain.require_finite(importance.cpu().numpy().reshape(1, -1), "importance")
    n_rows, n_cols = rows.shape
    step = slab_rows(type, n_cols, importance is not None, rows.device)
    out = torch.empty((n_rows, type.row_bytes(n_cols)), dtype=torch.uint8, device=rows.device)
    for first in range(0, n_rows, step):
        slab = rows[first : first + step].contiguous()
        _require_finite(slab, first)
        out[first : first + step] = encode_rows(type, slab, importance, engine)
    plain.require_finite_scales(out.cpu().numpy(), type)
    return out


def _gpu() -> torch.device:
    from quantmill.qkernels.lanes.triton import INTERPRETED

    if INTERPRETED:
        return torch.device("cpu")
    found = torch.accelerator.current_accelerator()
    if found is None or found.type not in ("cuda", "xpu"):
        raise QuantizeError("engine triton needs a CUDA, ROCm or XPU device; choose the cpu engine")
    return found


def _require_finite(rows: torch.Tensor, first_row: int) -> None:
    finite = torch.isfinite(rows)
    if not bool(finite.all()):
        row, column = (~finite).nonzero()[0].tolist()
        value = float(rows[row, column])
        raise QuantizeError(
            f"weights: {value} in row {first_row + row}, column {column}; nothing can be quantized from it"
        )


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

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
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
        source, target = get_type(source_type), get_type(type)
        n_rows, n_cols = len(raw), raw.shape[1] // source.bytes * source.block
        weights = None
        if importance is not None and target.importance != "none":
            plain.require_finite(importance.reshape(1, -1), "importance")
            weights = torch.tensor(importance, dtype=torch.float32, device=self._device)
        elif target.importance == "required":
            raise QuantizeError(
                f"{target.name} needs importance (an imatrix); choose another type or collect one"
            )
        out = np.empty((n_rows, target.row_bytes(n_cols)), np.uint8)
        step = slab_rows(target, n_cols, weights is not None, self._device)
        under_way: deque[_Slab] = deque()
        for number, first in enumerate(range(0, n_rows, step)):
            rows = raw[first : first + step]
            under_way.append(self._start(rows, first, number % 2, source, target, weights))
            if len(under_way) == 2:
                self._finish(under_way.popleft(), raw, source, out)
        for slab in under_way:
            self._finish(slab, raw, source, out)
        plain.require_finite_scales(out, target)
        return out

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
            blocks = encode_rows(target, rows, weights, self.engine.name)
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
                blocks = encode_rows(target, rows, weights, self.engine.name)
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
            rows = dequantize(torch.tensor(raw[slab.first : slab.first + n_rows]), source.name)
            _require_finite(rows, slab.first)
        out[slab.first : slab.first + n_rows] = slab.blocks.numpy()

    def _buffer(self, name: str, turn: int, size: int) -> torch.Tensor:
        """A pinned buffer of `size` bytes. Two turns: a slab's buffers rest until the slab before the last is done."""
        kept = self._pinned.get((name, turn))
        if kept is None or len(kept) < size:
            kept = self._pinned[name, turn] = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return kept[:size]
