"""Every type on every device that is there: whether its bytes are the CPU's, how fast it is, and what limits it."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np

from quantmill.jobs.watcher import Silent, Watcher
from quantmill.qkernels.device_faults import objections_of, reason_of
from quantmill.qkernels.drivers import describe
from quantmill.qkernels.encoders import encoder_of
from quantmill.qkernels.engines import Engine, serving
from quantmill.qkernels.guard import Guard, within
from quantmill.qkernels.lanes.native import host
from quantmill.qkernels.rows import row_quantizers
from quantmill.qkernels.trial import speed, speed_alone
from quantmill.qkernels.trust import Answers, ask, case_of, identity
from quantmill.qkernels.types import TYPES, QuantType

# Bytes that are read and sent to see how fast that goes.
_PROBE_BYTES = 1 << 28
_SOURCE_BYTES = 2  # a weight in F16 or BF16


@dataclass(frozen=True)
class Checked:
    """A type on a device. `identical`: None for the CPU engine, which is the judge. `mweights`: a second, from memory
    to memory; `gigabytes`: F16 in and blocks out in that time; `alone`: of the search by itself, on a device that has
    memory of its own. `registers`: the most of a thread, where it is known."""

    device: str
    engine: str
    type: str
    identical: bool | None
    blocks: int = 0
    different: int = 0
    mweights: float = 0.0
    gigabytes: float = 0.0
    alone: float | None = None
    registers: int | None = None
    fault: str = ""


@dataclass(frozen=True)
class Limits:
    """Gigabytes a second: reading files here, sending to the device. None where it cannot be known."""

    disk: float | None
    upload: float | None


def quantized_types() -> list[str]:
    return [type.name for type in TYPES.values() if type.family != "plain"]


def check(
    engines: Sequence[Engine], types: Sequence[str], seconds: float = 0.3, watcher: Watcher | None = None
) -> list[Checked]:
    """All types on all engines' devices; asks again what is known already. A fault is a row too."""
    watcher = watcher or Silent()
    watcher.began("checking", len(engines) * len(types), "tasks")
    found = []
    for engine in engines:
        for type in types:
            found.append(_checked(engine, TYPES[type], seconds))
            watcher.progressed(1, f"{type} on {engine.device}")
    return found


def _checked(engine: Engine, type: QuantType, seconds: float) -> Checked:
    blocks = different = 0
    faults: list[str] = []
    identical = None
    if engine.row is not serving("cpu"):
        verdicts = [_asked(engine, type, importance, faults) for importance in _importances(type)]
        blocks, different = (sum(v[i] for v in verdicts) for i in range(2))
        faults += _decoding_faults(engine, type)
        identical = not different and not faults
    fault = "; ".join(faults)
    row = Checked(engine.device, engine.name, type.name, identical, blocks, different, fault=fault)
    return row if faults else timed(engine, row, seconds)


def timed(engine: Engine, row: Checked, seconds: float) -> Checked:
    """The row with how fast its type is."""
    type = TYPES[row.type]
    mweights, faults = speed(engine, type.name, seconds)
    alone = None if faults else speed_alone(engine, type.name, seconds)
    moved = _SOURCE_BYTES + type.bytes / type.block
    return replace(
        row,
        mweights=round(mweights, 1),
        gigabytes=round(mweights * moved / 1000, 3),
        alone=None if alone is None else round(alone, 1),
        registers=_registers(engine, type, type.importance != "none"),
        fault="; ".join(faults),
    )


def _importances(type: QuantType) -> list[bool]:
    return {"none": [False], "required": [True]}.get(type.importance, [False, True])


def _asked(engine: Engine, type: QuantType, weighted: bool, faults: list[str]) -> tuple[int, int]:
    """Blocks compared, blocks that differ; asked now, whatever is known. What the device raises becomes a fault."""
    from quantmill.qkernels.device import DeviceQuantizer

    answers = Answers(engine)
    (cpu,) = row_quantizers(Engine("cpu", "cpu", "the judge"))
    case = case_of(type.name, weighted, "default")
    try:
        device = DeviceQuantizer(engine)
        verdict = within(
            Guard().first_seconds,
            lambda: ask(answers, case, type.name, weighted, device.quantize, cpu.quantize),
        )
    except objections_of(engine) as error:
        faults.append(reason_of(error))
        return 0, 0
    return verdict.blocks, verdict.different


def _decoding_faults(engine: Engine, type: QuantType) -> list[str]:
    """Of numbers of each type; what the device raises is one as well."""
    from quantmill.qkernels.device_decode import DTYPES, decoding_fault

    try:
        return [fault for to in DTYPES if (fault := decoding_fault(engine, type, to))]
    except objections_of(engine) as error:
        return [reason_of(error)]


def _registers(engine: Engine, type: QuantType, weighted: bool) -> int | None:
    """Of the searches that have just run, where the engine can tell."""
    row = engine.row
    lanes = row.lanes(row.encoder)
    if not hasattr(lanes, "registers"):
        return None
    found: int | None = lanes.registers(encoder_of(type.name, weighted))
    return found


def limits(engine: Engine) -> Limits:
    """What reading and sending take, measured now: a file here that the system does not remember, and a slab."""
    return Limits(_disk(), _upload(engine))


def _disk() -> float | None:
    if not hasattr(os, "posix_fadvise"):
        return None
    data = np.random.default_rng(0).bytes(_PROBE_BYTES)
    try:
        with tempfile.TemporaryFile(dir=".") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            started = time.perf_counter()
            while file.read(1 << 24):
                pass
            return round(_PROBE_BYTES / (time.perf_counter() - started) / 1e9, 2)
    except OSError:  # a folder that is not ours, a full disk: what was checked is shown all the same
        return None


def _upload(engine: Engine) -> float | None:
    """From pinned memory, where a device does not see the host's own."""
    if engine.kind not in ("cuda", "xpu"):
        return None
    import torch

    module: Any = getattr(torch, engine.kind)
    waiting = torch.empty(_PROBE_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(_PROBE_BYTES, dtype=torch.uint8, device=engine.device)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        there.copy_(waiting)
        module.synchronize(engine.device)
        seconds.append(time.perf_counter() - started)
    return round(_PROBE_BYTES / min(seconds) / 1e9, 2)


def slowest(row: Checked, found: Limits) -> tuple[str, float]:
    """What limits a file in F16 that becomes this type on this device, and Mweights a second at most."""
    rates = (
        {"search": row.mweights} if row.alone is None else {"main memory": row.mweights, "search": row.alone}
    )
    for name, rate in (("disk", found.disk), ("PCIe", found.upload)):
        if rate is not None:
            rates[name] = rate * 1000 / _SOURCE_BYTES
    name = min(rates, key=lambda key: rates[key])
    return name, round(rates[name], 1)


def described(engines: Sequence[Engine]) -> Iterator[str]:
    """A line for each thing that numbers may depend on, for reports."""
    for engine in engines:
        facts = _judge() if engine.row is serving("cpu") else identity(engine)
        yield ", ".join(f"{name} {value[:60]}" for name, value in facts.items() if value)


def _judge() -> dict[str, str]:
    packages = {name: version(name) for name in ("numpy", "llvmlite")}
    here = {"device": describe("cpu"), "processor": host().name, "floats in a vector": str(host().register)}
    return {**here, "system": sys.platform, "python": platform.python_version(), **packages}
