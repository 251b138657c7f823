"""The engines, a row each, and which of them serves which device. Decided once, with the reason in words.

The CPU engine needs no torch, so nothing here imports torch before a GPU driver is seen or a device is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from quantmill.qkernels.drivers import gpu_driver_present, torch_devices
from quantmill.qkernels.types import QuantizeError, QuantType, Search

if TYPE_CHECKING:
    import numpy as np


class RowQuantizer(Protocol):
    """Stored rows u8 [n_rows, row_bytes] of one type → rows of another, on one device, for one worker.

    `load` runs in the reading thread and gives `quantize`, in the worker's, what it wants. Both raise QuantizeError as
    `qkernels.quantize` does. `finish`, after the last rows of a run, raises DeviceFault for some that came out wrong.
    """

    def load(self, raw: np.ndarray, source_type: str) -> np.ndarray: ...

    def quantize(
        self, loaded: np.ndarray, source_type: str, type: str, importance: np.ndarray | None
    ) -> np.ndarray: ...

    def finish(self) -> None: ...


class EngineModule(Protocol):
    """What the module of an engine offers. Rows are numpy arrays or tensors; importance has been checked."""

    def quantize(
        self,
        engine: EngineRow,
        rows: Any,
        type: QuantType,
        importance: np.ndarray | None,
        threads: int | None,
        search: Search,
    ) -> Any:
        """rows f32 [n_rows, n_cols] → u8 [n_rows, row_bytes], of the same kind and in the same place."""

    def decode(self, engine: EngineRow, type: QuantType, raw: Any, numbers: Any, to: str) -> None:
        """Tensors raw u8 [n_blocks, bytes] → numbers [n_blocks, block] of the type `to`, contiguous, on one device."""

    def quantizers(
        self, engine: Engine, threads: int | None, search: Search, guard: Any
    ) -> list[RowQuantizer]:
        """Those that share the work of a device. guard: of guarded.py, how a device's faults are dealt with."""


@dataclass(frozen=True)
class Service:
    """How an engine serves a kind of device: how many quantizers share one, and why it is chosen, for people."""

    quantizers: int
    why: str


@dataclass(frozen=True)
class EngineRow:
    """One way to run lane programs.

    `module`: an EngineModule. `encoder`, `decoder`: modules with `encode` and `decode` for tensors, where it works on
    those. All are imported when they are used. `needs`: packages. `serves`: torch's kinds of devices.
    """

    name: str
    module: str
    encoder: str
    decoder: str
    needs: tuple[str, ...]
    serves: Mapping[str, Service]

    def load(self) -> EngineModule:
        module: Any = importlib.import_module(f"quantmill.qkernels.{self.module}")
        return module

    def lanes(self, module: str) -> Any:
        """`encoder` or `decoder`, imported."""
        return importlib.import_module(f"quantmill.qkernels.lanes.{module}")


# Of a thread, of the slowest type in three seconds. An H100 takes five for torch, Triton, its driver and its kernels.
WEIGHTS_BEFORE_A_GPU = 60_000_000
# What devices are compared by where several could do the work.
TRIAL_TYPE = "Q4_K"
_SLOW = "triton is not installed, torch operations are slow: pip install triton"
# The first that serves a kind of device, and whose packages are there, is the one for it.
ENGINES = (
    EngineRow(
        "cpu",
        "cpu_engine",
        "cpu",
        "cpu_decode",
        (),
        {"cpu": Service(1, "lane programs compiled by LLVM, no torch needed")},
    ),
    EngineRow(
        "triton",
        "device",
        "triton",
        "triton_decode",
        ("torch", "triton"),
        {kind: Service(2, "lane programs compiled by Triton") for kind in ("cuda", "xpu")},
    ),
    EngineRow(
        "metal",
        "device",
        "metal",
        "metal_decode",
        ("torch",),
        {"mps": Service(1, "lane programs compiled by Metal")},
    ),
    EngineRow(
        "torch",
        "device",
        "torch",
        "torch_decode",
        ("torch",),
        {
            "mps": Service(1, "the lane programs as torch operations"),
            "cuda": Service(2, _SLOW),
            "xpu": Service(2, _SLOW),
            "cpu": Service(1, "the readable reference"),
        },
    ),
)


# The variables under which torch compiles for speed, and rounds otherwise than llama.cpp; it has no other way to be
# told, and reads them once.
_INEXACT = {"mps": "PYTORCH_MPS_FAST_MATH"}


def require_exact(kind: str) -> None:
    """Raises QuantizeError where torch's kernels for a kind of device would not give the same bytes."""
    name = _INEXACT.get(kind)
    if name is not None and os.environ.get(name, "0") != "0":
        raise QuantizeError(
            f"{name} is set: {kind} would round otherwise than llama.cpp; unset it, or use --device cpu"
        )


def engine_row(name: str) -> EngineRow:
    """The row of an engine. Raises QuantizeError with the known names."""
    for row in ENGINES:
        if row.name == name:
            return row
    raise QuantizeError(f"unknown engine {name!r}; engines: {', '.join(row.name for row in ENGINES)}")


def serving(kind: str) -> EngineRow:
    """The engine for a kind of device: "cpu", "cuda", "mps", "xpu"."""
    for row in ENGINES:
        if kind in row.serves and all(map(_installed, row.needs)):
            return row
    raise QuantizeError(f"nothing here can work on {kind}")


@dataclass(frozen=True)
class Engine:
    """What quantizes on one device: `name` is the engine, `device` torch's name of the device, `why` for people."""

    name: str
    device: str
    why: str

    @property
    def row(self) -> EngineRow:
        return engine_row(self.name)

    @property
    def kind(self) -> str:
        return self.device.partition(":")[0]


def choose_engines(
    device: str = "auto", n_weights: int | None = None, threads: int | None = None
) -> tuple[Engine, ...]:
    """The engines for "auto", "cpu", "mps", "cuda", "cuda:1", "xpu" or several devices, "cuda:0,cuda:1".

    "auto" takes all CUDA or ROCm devices, else all of Intel's, on a Mac the faster of Metal and the CPU (tried once),
    else the CPU. Of so few weights, where n_weights says how many, that `threads` of the CPU are done before a GPU
    begins, it takes the CPU. Raises QuantizeError for a device that is not there.
    """
    if device == "auto":
        few = WEIGHTS_BEFORE_A_GPU * (threads or os.cpu_count() or 1)
        if n_weights is not None and n_weights <= few and sys.platform != "darwin":
            return (_on("cpu", f"{n_weights / 1e6:.0f} Mweights are done before a GPU begins"),)
        return _automatic()
    chosen = tuple(_engine_for(one.strip()) for one in device.split(","))
    names = [engine.device for engine in chosen]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise QuantizeError(f"device {device} names {twice} twice")
    return chosen


def available_engines() -> tuple[Engine, ...]:
    """One engine for each device found here, the CPU last."""
    found = [_engine_for(name) for name in torch_devices()] if _installed("torch") else []
    return (*found, _on("cpu"))


def _on(device: str, why: str | None = None) -> Engine:
    row = serving(device.partition(":")[0])
    return Engine(row.name, device, why or row.serves[device.partition(":")[0]].why)


def _automatic() -> tuple[Engine, ...]:
    if sys.platform == "darwin":
        return (_faster_on_a_mac(),)
    if not gpu_driver_present():
        return (_on("cpu", "no CUDA or ROCm driver found"),)
    if not _installed("torch"):
        return (_on("cpu", "there is a GPU, but torch is not installed: pip install 'quantmill[gpu]'"),)
    devices = torch_devices()
    for kind in ("cuda", "xpu"):
        names = [name for name in devices if name.startswith(kind)]
        if len(names) > 1:
            shared = f"{serving(kind).serves[kind].why}; {len(names)} devices share the work"
            return tuple(_on(name, shared) for name in names)
        if names:
            return (_engine_for(names[0]),)
    return (_on("cpu", "there is a GPU, but this torch cannot use it"),)


def _faster_on_a_mac() -> Engine:
    if not _installed("torch"):
        return _on("cpu", "Apple's GPU needs torch: pip install 'quantmill[torch]'")
    try:
        metal = _engine_for("mps")
    except QuantizeError as error:
        return _on("cpu", str(error))
    # loaded when it is used, as the engines themselves are
    trial: Any = importlib.import_module("quantmill.qkernels.trial")
    found = trial.speeds((metal, _on("cpu")))
    names = {"mps": "Metal", "cpu": "the CPU"}
    shown = ", ".join(f"{names[kind]} {speed:.0f}" for kind, speed in found.items())
    why = f"{shown} Mweights/s of {TRIAL_TYPE}, tried once"
    return _on("mps" if found["mps"] > found["cpu"] else "cpu", why)


def _engine_for(device: str) -> Engine:
    kind, _, number = device.partition(":")
    if device == "cpu":
        return _on("cpu")
    if device == "auto":
        raise QuantizeError("device auto takes all that there are: name it alone")
    if kind not in ("cuda", "mps", "xpu") or (number and not number.isdecimal()):
        raise QuantizeError(f"unknown device {device!r}; devices: auto, cpu, cuda, cuda:N, mps, xpu")
    if not _installed("torch"):
        raise QuantizeError(f"device {device} needs torch: pip install 'quantmill[gpu]'")
    known = torch_devices()
    name = device if number or kind == "mps" else f"{kind}:0"
    if name not in known:
        raise QuantizeError(f"device {device} is not there; torch finds {', '.join([*known, 'cpu'])}")
    require_exact(kind)
    return _on(name)


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
