"""Where numbers were measured: processor or GPU, versions, the time."""

from __future__ import annotations

import datetime
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def machine(device: str = "cpu") -> str:
    """Processor, or the GPU's name, and versions that numbers may depend on. device: torch's name of one."""
    name = _processor()
    if device.startswith("cuda"):
        import torch  # has been loaded by whoever names such a device

        name = torch.cuda.get_device_name(device)
    return f"{name}; Python {platform.python_version()}{_torch()}, {sys.platform}"


def _torch() -> str:
    try:
        return f", torch {version('torch')}"
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
