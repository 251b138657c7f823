"""How fast devices are, tried for a second each; the answer is kept beside those of trust.py."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from quantmill.qkernels.engines import TRIAL_TYPE, Engine
from quantmill.qkernels.rows import row_quantizers
from quantmill.qkernels.trust import Answers
from quantmill.qkernels.types import get_type

_SECONDS = 1.0
_N_ROWS, _N_COLS = 1024, 4096


def trial_rows(type: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Gaussian rows as stored F16, u8 [1024, 8192], and importance f32 [4096] for types that use it."""
    rng = np.random.default_rng(5)
    rows = (rng.standard_normal((_N_ROWS, _N_COLS), np.float32) * 0.02).astype("<f2")
    weighted = get_type(type).importance != "none"
    return rows.view(np.uint8), rng.random(_N_COLS).astype(np.float32) + 0.01 if weighted else None


def speed(engine: Engine, type: str, seconds: float = _SECONDS) -> tuple[float, list[str]]:
    """Mweights a second of an engine from memory to memory, without what compiling takes; and what went wrong."""
    faults: list[str] = []
    (quantizer, *_) = row_quantizers(engine, tell=faults.append)
    stored, importance = trial_rows(type)
    quantizer.quantize(quantizer.load(stored[:64], "F16"), "F16", type, importance)
    started = time.perf_counter()
    weights = 0
    while not faults:
        quantizer.quantize(quantizer.load(stored, "F16"), "F16", type, importance)
        weights += stored.size // 2
        if time.perf_counter() - started > seconds:
            break
    return weights / max(time.perf_counter() - started, 1e-9) / 1e6, faults


def speed_alone(engine: Engine, type: str, seconds: float = _SECONDS) -> float | None:
    """Mweights a second of the search itself, of rows that lie on the device; None where they lie there anyway, and
    where the device fails."""
    if engine.kind not in ("cuda", "xpu"):
        return None
    import torch

    from quantmill.qkernels.device import encode_rows
    from quantmill.qkernels.device_faults import objections_of

    stored, importance = trial_rows(type)
    module: Any = getattr(torch, engine.kind)
    try:
        rows = torch.from_numpy(stored.view("<f2").astype(np.float32)).to(engine.device)
        weights = None if importance is None else torch.from_numpy(importance).to(engine.device)
        encode_rows(engine.row, get_type(type), rows, weights, "default")
        module.synchronize(engine.device)
        started, turns = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            for _ in range(8):
                encode_rows(engine.row, get_type(type), rows, weights, "default")
            module.synchronize(engine.device)
            turns += 8
    except objections_of(engine):
        return None
    return turns * rows.numel() / (time.perf_counter() - started) / 1e6


def speeds(engines: Sequence[Engine]) -> dict[str, float]:
    """Kind of device → Mweights a second; 0 for one that does not work. From earlier where the first was tried."""
    answers = Answers(engines[0])
    kept = answers.fact("speed")
    kinds = {engine.kind for engine in engines}
    if kept is not None and set(kept) == kinds and all(isinstance(v, int | float) for v in kept.values()):
        return {kind: float(value) for kind, value in kept.items()}
    found = {}
    for engine in engines:
        fast, faults = speed(engine, TRIAL_TYPE)
        found[engine.kind] = 0.0 if faults else round(fast, 1)
    answers.keep_fact("speed", found)
    return found
