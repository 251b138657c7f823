"""What a device's faults look like as Python's exceptions, and in words."""

from __future__ import annotations

import subprocess

from quantmill.qkernels.engines import Engine
from quantmill.qkernels.types import QuantizeError

# What torch, Triton's and Metal's compilers and their tools raise.
FAULTS = (RuntimeError, OSError, SyntaxError, AttributeError, ImportError, subprocess.SubprocessError)


def faults_of(engine: Engine) -> tuple[type[Exception], ...]:
    """What an engine may raise that is the device's fault."""
    row = engine.row
    return (*FAULTS, *getattr(row.lanes(row.encoder), "FAULTS", ()))


def objections(faults: tuple[type[Exception], ...]) -> tuple[type[Exception], ...]:
    """What the first work on a type may raise: the device's faults, and engines that refuse it."""
    return (QuantizeError, *faults)


def objections_of(engine: Engine) -> tuple[type[Exception], ...]:
    return objections(faults_of(engine))


def reason_of(error: Exception) -> str:
    """Its kind, and the first line of what it says."""
    line = (str(error).strip() or "no reason given").splitlines()[0][:200]
    return f"{error.__class__.__name__}: {line}"
