"""On what, with what and by which command something was measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from quantmill.qkernels import drivers, engines

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("numpy", "llvmlite", "torch", "triton", "gguf", "xllamacpp")


@dataclass(frozen=True)
class Machine:
    """`load`: runnable processes of the last minute when the measurement began, of everybody on the machine."""

    date: str
    processor: str
    cores: int
    devices: tuple[str, ...]
    system: str
    load: float
    versions: dict[str, str]
    commit: str
    command: str


def describe(module: str, arguments: list[str]) -> Machine:
    """The facts of this machine and this run. `module`: what `python -m` was given."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Machine(
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        devices=tuple(drivers.describe(e.device) for e in engines.available_engines() if e.device != "cpu"),
        system=f"{platform.system()} {platform.release()}",
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0,
        versions=versions,
        commit=_commit(),
        command=shlex.join(["python", "-m", module, *arguments]),
    )


def _processor() -> str:
    """Name and the vector extensions that decide the speed, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    flags = facts.get("flags", "").split()
    vectors = next((name for name in ("avx512f", "avx2", "sse4_2") if name in flags), platform.machine())
    return f"{facts.get('model name', platform.machine())}, {vectors}"


def _commit() -> str:
    """The commit that was measured; "+" when files that take part had been changed since."""
    git = ["git", "-C", str(_ROOT)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        watched = ["qkernels", "gguf_io", "recipe", "jobs", "bench/*.py"]
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no", "--", *watched],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return f"not a git checkout ({Path(sys.prefix).name})"
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")
