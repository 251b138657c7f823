"""Which engine serves which device. Decided once, with the reason in words; nothing changes it afterwards.

The CPU engine needs no torch, so nothing here imports torch before a GPU driver is seen or a device is asked for.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quantmill.qkernels.types import QuantizeError

EngineName = Literal["cpu", "torch", "triton"]


@dataclass(frozen=True)
class Engine:
    """What quantizes on one device: `name` is the engine, `device` torch's name of the device, `why` for people."""

    name: EngineName
    device: str
    why: str


def choose_engines(device: str = "auto") -> tuple[Engine, ...]:
    """The engines for "auto", "cpu", "mps", "cuda", "cuda:1", "xpu" or several devices, "cuda:0,cuda:1".

    "auto" takes the first CUDA or ROCm device, else the CPU. Raises QuantizeError for a device that is not there.
    """
    if device == "auto":
        return (_automatic(),)
    return tuple(_engine_for(one.strip()) for one in device.split(","))


def available_engines() -> tuple[Engine, ...]:
    """One engine for each device found here, the CPU last."""
    found = [_engine_for(name) for name in _torch_devices()] if _installed("torch") else []
    return (*found, _CPU)


_CPU = Engine("cpu", "cpu", "lane programs compiled by LLVM, no torch needed")


def _automatic() -> Engine:
    if sys.platform == "darwin":
        return Engine(
            "cpu", "cpu", "on a Mac the CPU engine is faster than torch on MPS (--device mps is honoured)"
        )
    if not _gpu_driver_present():
        return Engine("cpu", "cpu", "no CUDA or ROCm driver found")
    if not _installed("torch"):
        return Engine(
            "cpu", "cpu", "there is a GPU, but torch is not installed: pip install 'quantmill[gpu]'"
        )
    devices = [name for name in _torch_devices() if name.startswith("cuda")]
    if not devices:
        return Engine("cpu", "cpu", "there is a GPU, but this torch cannot use it")
    return _engine_for(devices[0])


def _engine_for(device: str) -> Engine:
    if device == "cpu":
        return _CPU
    kind, _, number = device.partition(":")
    if kind not in ("cuda", "mps", "xpu") or (number and not number.isdecimal()):
        raise QuantizeError(f"unknown device {device!r}; devices: auto, cpu, cuda, cuda:N, mps, xpu")
    if not _installed("torch"):
        raise QuantizeError(f"device {device} needs torch: pip install 'quantmill[gpu]'")
    known = _torch_devices()
    name = device if number or kind == "mps" else f"{kind}:0"
    if name not in known:
        raise QuantizeError(f"device {device} is not there; torch finds {', '.join([*known, 'cpu'])}")
    if kind == "mps":
        return Engine("torch", name, "Metal has no Triton: the lane programs run as torch operations")
    if not _installed("triton"):
        return Engine("torch", name, "triton is not installed, torch operations are slow: pip install triton")
    return Engine("triton", name, "lane programs compiled by Triton")


def describe(device: str) -> str:
    """What a device is: cores of the CPU; a GPU's name and memory as torch tells them."""
    if device == "cpu":
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return f"{platform.machine()}, {usable} cores"
    import torch

    if device == "mps":
        return f"Apple GPU, {torch.mps.recommended_max_memory() / 2**30:.0f} GiB"
    module = torch.xpu if device.startswith("xpu") else torch.cuda
    properties = module.get_device_properties(device)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _torch_devices() -> list[str]:
    import torch

    names = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return names + [f"xpu:{i}" for i in range(torch.xpu.device_count())]


def _gpu_driver_present() -> bool:
    """Whether a CUDA driver has a device or ROCm's kernel driver is loaded. torch would need a second to tell."""
    if Path("/dev/kfd").exists():
        return True
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
