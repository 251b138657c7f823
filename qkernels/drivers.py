"""What devices this machine has, as its drivers and torch tell."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path
from typing import Any


def describe(device: str) -> str:
    """What a device is: cores of the CPU; a GPU's name and memory as torch tells them."""
    if device == "cpu":
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return f"{platform.machine()}, {usable} cores"
    import torch

    if device == "mps":
        name = getattr(torch._C, "_mps_get_name", lambda: "Apple GPU")()
        return f"{name}, {torch.mps.recommended_max_memory() / 2**30:.0f} GiB"
    module = torch.xpu if device.startswith("xpu") else torch.cuda
    properties = module.get_device_properties(device)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def torch_devices() -> list[str]:
    """Torch's names of all that are here but the CPU; imports torch."""
    import torch

    names = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return names + [f"xpu:{i}" for i in range(torch.xpu.device_count())]


def gpu_driver_present() -> bool:
    """Whether a CUDA driver has a device, or drivers of ROCm or Intel are there. torch would need a second to tell."""
    if Path("/dev/kfd").exists() or _library("libze_loader.so.1", "ze_loader.dll"):
        return True
    driver = _library("libcuda.so.1", "nvcuda.dll")
    if driver is None:
        return False
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def _library(name: str, on_windows: str) -> Any | None:
    try:
        return ctypes.CDLL(on_windows if sys.platform == "win32" else name)
    except OSError:
        return None
