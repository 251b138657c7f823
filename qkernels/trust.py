"""Whether a device gives the CPU engine's bytes: asked the first time that it meets a type, the answer kept.

Kept beside the compiled code, under what the answer depends on: device, driver, torch, triton, and our own programs.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantmill.qkernels.cache import cache_dir, write_atomically
from quantmill.qkernels.drivers import describe
from quantmill.qkernels.engines import Engine
from quantmill.qkernels.hard_blocks import hard_importance, hard_rows
from quantmill.qkernels.types import QuantType, Search, get_type

_PACKAGE = Path(__file__).resolve().parent
# Blocks that a report shows.
_SHOWN = 8
# (stored rows, their type, type, importance) → blocks u8
Quantize = Callable[[np.ndarray, str, str, np.ndarray | None], np.ndarray]


@dataclass(frozen=True)
class Verdict:
    """How many of the blocks differed, and the file that shows some of them."""

    blocks: int
    different: int
    report: str = ""


def driver_of(device: str) -> str:
    """What drives a device, with its version, as far as it can be known."""
    import torch

    kind = device.partition(":")[0]
    if kind == "mps":
        return f"macOS {platform.mac_ver()[0]}"
    if kind == "xpu":
        return str(getattr(torch.xpu.get_device_properties(device), "driver_version", ""))
    if kind == "cuda" and torch.version.hip:
        return f"HIP {torch.version.hip}"
    file = Path("/proc/driver/nvidia/version")
    if kind == "cuda" and file.exists():
        return file.read_text().partition("\n")[0].strip()
    return f"CUDA {torch.version.cuda}" if kind == "cuda" else ""


def identity(engine: Engine) -> dict[str, str]:
    """What an answer depends on."""
    from importlib.metadata import PackageNotFoundError, version  # slow to load, and of use to devices only

    found = {
        "engine": engine.name,
        "device": describe(engine.device),
        "driver": driver_of(engine.device),
        "system": sys.platform,
        "programs": _programs(),
    }
    for package in ("torch", "triton"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return found


def _programs() -> str:
    """A hash of all that decides about a kernel's bytes."""
    digest = hashlib.sha256()
    for file in sorted(_PACKAGE.rglob("*.py")):
        digest.update(file.relative_to(_PACKAGE).as_posix().encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


class Answers:
    """The answers of one device, in memory and in files."""

    def __init__(self, engine: Engine) -> None:
        self._identity = identity(engine)
        text = json.dumps(self._identity, sort_keys=True)
        self.folder = cache_dir("devices") / hashlib.sha256(text.encode()).hexdigest()[:16]
        self._known: dict[str, Verdict] = {}

    def get(self, case: str) -> Verdict | None:
        """The kept answer; a file that cannot be read is no answer."""
        if case in self._known:
            return self._known[case]
        try:
            found = json.loads((self.folder / f"{case}.json").read_text(encoding="utf-8"))
            return self._keep(case, Verdict(**found["verdict"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _keep(self, case: str, verdict: Verdict) -> Verdict:
        self._known[case] = verdict
        return verdict

    def put(self, case: str, verdict: Verdict) -> None:
        self._keep(case, verdict)
        self._write(f"{case}.json", {"verdict": asdict(verdict)})

    def fact(self, name: str) -> dict[str, Any] | None:
        """Something else that was learned of the device and kept under a name."""
        try:
            found = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
            return dict(found[name])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep_fact(self, name: str, facts: Mapping[str, Any]) -> None:
        self._write(f"{name}.json", {name: dict(facts)})

    def report(self, case: str, facts: Mapping[str, Any]) -> str:
        """A file that shows what went wrong; its path, or "" where it cannot be written."""
        stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%S")
        return self._write(f"{case}-report-{stamp}.json", facts)

    def _write(self, name: str, facts: Mapping[str, Any]) -> str:
        path = self.folder / name
        try:
            write_atomically(path, json.dumps({**self._identity, **facts}, indent=1).encode())
        except OSError:
            return ""
        return str(path)


def case_of(type: str, weighted: bool, search: Search) -> str:
    return "-".join([type, "importance" if weighted else "plain", search])


def is_weighted(case: str) -> bool:
    return "importance" in case


def ask(
    answers: Answers, case: str, type: str, weighted: bool, by_device: Quantize, by_cpu: Quantize
) -> Verdict:
    """The device's blocks of hard rows against the CPU engine's; the answer is kept. Raises what the device raises."""
    rows, importance = hard_rows(), hard_importance() if weighted else None
    stored = rows.view(np.uint8)
    found = by_device(stored, "F32", type, importance)
    expected = by_cpu(stored, "F32", type, importance)
    verdict = compared(answers, case, get_type(type), stored, found, expected)
    answers.put(case, verdict)
    return verdict


def compared(
    answers: Answers, case: str, type: QuantType, raw: np.ndarray, found: np.ndarray, expected: np.ndarray
) -> Verdict:
    """Blocks [n_rows, row_bytes] of the same stored rows; of a difference a report is written."""
    ours, theirs = found.reshape(-1, type.bytes), expected.reshape(-1, type.bytes)
    wrong = np.flatnonzero((ours != theirs).any(1))
    if not len(wrong):
        return Verdict(len(theirs), 0)
    sources = np.ascontiguousarray(raw).reshape(-1)
    # Within blocks of the source, where these are longer.
    starts = np.arange(len(theirs) + 1) * len(sources) / len(theirs)
    shown = [
        {
            "block": int(i),
            "stored": sources[int(starts[i]) : math.ceil(starts[i + 1])].tobytes().hex(),
            "device": ours[i].tobytes().hex(),
            "cpu": theirs[i].tobytes().hex(),
        }
        for i in wrong[:_SHOWN]
    ]
    facts = {"case": case, "blocks": len(theirs), "different": len(wrong), "shown": shown}
    return Verdict(len(theirs), len(wrong), answers.report(case, facts))
