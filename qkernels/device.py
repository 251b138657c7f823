"""Rows through an engine that works on torch tensors: slabs that fit the device, copies that overlap the search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from quantmill.qkernels.api import dequantize, to_float32
from quantmill.qkernels.checks import checked_importance, require_finite, require_finite_scales
from quantmill.qkernels.decoders import decoder_of
from quantmill.qkernels.device_faults import faults_of
from quantmill.qkernels.encoders import encoder_of
from quantmill.qkernels.engines import Engine, EngineRow, RowQuantizer
from quantmill.qkernels.flushing import FLUSHING, bounds, risky_blocks
from quantmill.qkernels.guard import Guard
from quantmill.qkernels.guarded import GuardedQuantizer, Shared
from quantmill.qkernels.lanes.tensors import bytes_per_block
from quantmill.qkernels.memory_faults import in_slabs
from quantmill.qkernels.travel import Arriving, travel_to
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
    engine.lanes(engine.decoder).decode(type, decoder_of(type.name), raw, numbers)


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


def free_memory(device: torch.device) -> None:
    """Gives back what torch's allocator keeps for itself."""
    if device.type != "cpu":
        _module(device).empty_cache()


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
    flushes = rows.device.type in FLUSHING
    safe = bounds(importance) if flushes and type.family != "plain" else None
    by_cpu = flushes and safe is None

    def redo(first: int, which: np.ndarray) -> None:
        slab = rows[first : first + len(which)][torch.from_numpy(which).to(rows.device)].cpu().numpy()
        done = _by_cpu(slab.view(np.uint8), "F32", type, importance, threads, search)
        out[first + torch.from_numpy(np.flatnonzero(which)).to(rows.device)] = torch.from_numpy(done).to(
            rows.device
        )

    step = slab_rows(type, n_cols, weights is not None, rows.device, search)

    def send(first: int, n: int, turn: int) -> torch.Tensor:
        slab = rows[first : first + n].contiguous()
        return slab if by_cpu else encode_rows(engine, type, slab, weights, search)

    def finish(first: int, n: int, blocks: torch.Tensor) -> None:
        if by_cpu:
            redo(first, np.ones(n, bool))
            return
        out[first : first + n] = blocks
        slab = rows[first : first + n].contiguous()
        if not bool(torch.isfinite(slab).all()):
            require_finite(slab.cpu().numpy(), first)
        if safe is not None:
            risky = engine.lanes(engine.encoder).risky(slab, safe).cpu().numpy()
            if risky.any():
                redo(first, risky)

    in_slabs(n_rows, step, send, finish, lambda: free_memory(rows.device))
    require_finite_scales(out.cpu().numpy(), type)
    return out


def _by_cpu(
    raw: np.ndarray,
    source: str,
    type: QuantType,
    importance: np.ndarray | None,
    threads: int | None,
    search: Search,
) -> np.ndarray:
    from quantmill.qkernels.cpu_engine import quantize_stored

    return quantize_stored(raw, source, type.name, importance, threads, search)


def _default_device(engine: EngineRow) -> torch.device:
    if "cpu" in engine.serves or engine.lanes(engine.encoder).INTERPRETED:
        return torch.device("cpu")
    found = torch.accelerator.current_accelerator()
    if found is None or found.type not in engine.serves:
        raise QuantizeError(f"engine {engine.name} needs a CUDA, ROCm or XPU device; choose the cpu engine")
    return found


class DeviceQuantizer:
    """Quantizes stored rows on one device, for one thread.

    Rows travel as they are stored (half the bytes for F16 and BF16) and become float32 on the device; two slabs are
    under way. Slabs never change a byte.
    """

    def __init__(self, engine: Engine, search: Search = "default", threads: int | None = None) -> None:
        self.engine, self.search = engine, search
        self._device = torch.device(engine.device)
        self._travel = travel_to(self._device)
        self._threads = threads
        self._flushes = self._device.type in FLUSHING

    def quantize(
        self, raw: np.ndarray, source_type: str, type: str, importance: np.ndarray | None = None
    ) -> np.ndarray:
        """raw u8 [n_rows, row_bytes] in `source_type`, importance [n_cols] f32 or None → u8 [n_rows, row_bytes].

        Raises QuantizeError as `qkernels.quantize` does.
        """
        source, target = readable_type(source_type), get_type(type)
        n_rows, n_cols = len(raw), raw.shape[1] // source.bytes * source.block
        checked = checked_importance(importance, n_cols, target, self.search)
        safe = bounds(checked) if self._flushes and target.family != "plain" else None
        if self._flushes and safe is None:
            return _by_cpu(raw, source.name, target, checked, self._threads, self.search)
        weights = None if checked is None else torch.tensor(checked, device=self._device)
        out = np.empty((n_rows, target.row_bytes(n_cols)), np.uint8)

        def finish(first: int, n: int, sent: Arriving) -> None:
            blocks, finite, *risky = sent.wait()
            slab = raw[first : first + n]
            if not finite.all():
                require_finite(to_float32(slab, source.name), first)
            out[first : first + n] = blocks
            if risky and risky[0].any():
                which = np.flatnonzero(risky[0])
                out[first + which] = _by_cpu(
                    slab[which], source.name, target, checked, self._threads, self.search
                )

        def work(stored: torch.Tensor) -> Sequence[torch.Tensor]:
            return self._work(stored, source, target, weights, safe)

        def send(first: int, n: int, turn: int) -> Arriving:
            return self._travel.send(raw[first : first + n], turn, work)

        step = slab_rows(target, n_cols, weights is not None, self._device, self.search)
        in_slabs(n_rows, step, send, finish, lambda: free_memory(self._device))
        require_finite_scales(out, target)
        return out

    def load(self, raw: np.ndarray, source_type: str) -> np.ndarray:
        return np.array(raw)  # reads the file here, not in the worker

    def finish(self) -> None:
        pass

    def _work(
        self,
        stored: torch.Tensor,
        source: QuantType,
        target: QuantType,
        weights: torch.Tensor | None,
        safe: Sequence[int] | None,
    ) -> Sequence[torch.Tensor]:
        """Blocks, whether each row is finite, and on devices that flush which rows are at risk."""
        rows = _exact_rows(stored, source) if self._flushes else dequantize(stored, source.name)
        blocks = encode_rows(self.engine.row, target, rows, weights, self.search)
        finite = torch.isfinite(rows).all(1)
        if safe is None:
            return blocks, finite
        risky = self.engine.row.lanes(self.engine.row.encoder).risky(rows, safe)
        by_blocks = risky_blocks(stored, source)
        return blocks, finite, risky if by_blocks is None else risky | by_blocks


def _exact_rows(stored: torch.Tensor, source: QuantType) -> torch.Tensor:
    """Stored rows u8 [n_rows, row_bytes] → f32 [n_rows, n_cols]; BF16 by its bits, which no device flushes."""
    if source.name == "BF16":
        return (stored.view(torch.int16).int() << 16).view(torch.float32)
    return dequantize(stored, source.name)


def quantizers(engine: Engine, threads: int | None, search: Search, guard: Guard) -> list[RowQuantizer]:
    """What share the work of a device in an assembly line, and its faults; a device has threads of its own.

    One, where an engine is tried on a device that it does not serve: Triton's interpreter on the CPU.
    """
    shared = Shared(engine, search, guard, faults_of(engine))
    service = engine.row.serves.get(engine.kind)
    return [
        GuardedQuantizer(lambda: DeviceQuantizer(engine, search, threads), threads, shared)
        for _ in range(service.quantizers if service else 1)
    ]
