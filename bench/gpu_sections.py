"""What bench.gpu looks at: sections of items, each of which becomes a row."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.gpu_pack import ORACLE
from quantmill.jobs.check_devices import Checked, Limits, limits, quantized_types, slowest, timed
from quantmill.qkernels.encoders import encoders
from quantmill.qkernels.engines import Engine

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "tiny-qwen3-moe"
_LEARNED = {
    "compensated": ("--compensate", "--chunks", "16"),
    "without a layer": ("--prune-layers", "auto:1", "--max-damage", "none"),
    "without experts": ("--prune-experts", "0.25", "--max-damage", "none"),
}
_SMALL_TYPES = ("Q8_0", "Q4_K", "IQ4_XS")


@dataclass(frozen=True)
class Row:
    """One finding. ok: None where nothing is right or wrong, only measured or skipped."""

    section: str
    what: str
    ok: bool | None
    value: float | None = None
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Trial:
    """What is looked at, and how much of it. folder: for files, of all processes of one look."""

    engine: Engine
    small: bool
    folder: Path


@dataclass(frozen=True)
class Section:
    """items: names, in order; look: makes the row of one, or raises whatever a device may raise."""

    items: Callable[[Trial], Sequence[str]]
    look: Callable[[Trial, str], Row]


def _types(trial: Trial) -> list[str]:
    return [name for name in quantized_types() if not trial.small or name in _SMALL_TYPES]


def _searches(trial: Trial) -> dict[str, tuple[str, bool]]:
    return {
        f"{type}-{'weighted' if weighted else 'plain'}": (type, weighted)
        for type, weighted in encoders()
        if type in _types(trial)
    }


def search(trial: Trial, key: str) -> Row:
    """A type, with or without importance: bytes of hard rows against llama.cpp's, or the CPU engine's."""
    from quantmill.qkernels.cpu_engine import quantize_stored
    from quantmill.qkernels.device import DeviceQuantizer
    from quantmill.qkernels.hard_blocks import hard_importance, hard_rows
    from quantmill.qkernels.types import TYPES

    type, weighted = _searches(trial)[key]
    rows = hard_rows()[:: 64 if trial.small else 1]
    importance = hard_importance() if weighted else None
    started = time.perf_counter()
    found = DeviceQuantizer(trial.engine).quantize(rows.view(np.uint8), "F32", type, importance)
    seconds = time.perf_counter() - started
    if ORACLE.exists() and not trial.small:
        expected, judge = np.load(ORACLE)[key], "llama.cpp"
    else:
        expected, judge = quantize_stored(rows.view(np.uint8), "F32", type, importance), "the CPU engine"
    size = TYPES[type].bytes
    wrong = int((found.reshape(-1, size) != expected.reshape(-1, size)).any(1).sum())
    note = f"{wrong} of {expected.size // size} blocks are not those of {judge}, first call {seconds:.1f} s"
    return Row("searches", key, not wrong, None, "", note)


def decoder(trial: Trial, type: str) -> Row:
    """A type decoded from random bytes, as the CPU does it."""
    import torch

    from quantmill.qkernels import dequantize
    from quantmill.qkernels.device import decode
    from quantmill.qkernels.types import TYPES

    row = TYPES[type]
    blocks = np.random.default_rng(row.id).integers(0, 256, (600, row.bytes), np.uint8)
    there = torch.from_numpy(blocks).to(trial.engine.device)
    out = torch.empty((600, row.block), device=trial.engine.device)
    decode(trial.engine.row, row, there, out, "F32")
    found, expected = out.cpu().numpy(), dequantize(blocks, type)
    same = (found.view(np.uint32) == expected.view(np.uint32)) | (np.isnan(found) & np.isnan(expected))
    return Row("decoders", type, bool(same.all()), None, "", f"{int((~same).sum())} numbers differ")


def speed(trial: Trial, what: str) -> Row:
    """Mweights a second from memory to memory, and what limits a file of F16 weights here."""
    found = _limits(trial.engine)
    if what in ("disk", "upload"):
        return Row("speeds", what, None, getattr(found, what), "GB/s")
    engine = trial.engine
    asked = Checked(engine.device, engine.name, what, None)
    row = timed(engine, asked, 0.05 if trial.small else 0.5)
    name, most = slowest(row, found)
    alone = "" if row.alone is None else f"the search alone {row.alone:.0f}, "
    registers = f", {row.registers} registers" if row.registers else ""
    note = row.fault or f"{alone}limited by {name} to {most:.0f}{registers}"
    return Row("speeds", what, not row.fault, row.mweights, "Mweights/s", note)


@functools.cache
def _limits(engine: Engine) -> Limits:
    return limits(engine)


def whole_file(trial: Trial, recipe: str) -> Row:
    """The driver from file to file, against the CPU's file."""
    for package in ("gguf", "typer"):
        if importlib.util.find_spec(package) is None:
            return Row("file", recipe, None, None, "", f"skipped: {package} is not installed")
    model = trial.folder / "model.gguf"
    if not model.exists():
        size = ["--layers", "1", "--vocabulary", "512"] if trial.small else ["--layers", "4"]
        _run(["-m", "bench.synthetic", str(model), *size])
    outputs: list[tuple[bytes, float]] = []
    for device in ("cpu", trial.engine.device):
        output = trial.folder / f"{recipe}-{device.replace(':', '')}-{len(outputs)}.gguf"
        importance = ["--imatrix", str(model.with_name("model-imatrix.gguf"))]
        started = time.perf_counter()
        _run(_quantmill("quantize", *importance, "--device", device, str(model), str(output), recipe))
        outputs.append((output.read_bytes(), time.perf_counter() - started))
        output.unlink()
    (right, on_cpu), (found, seconds) = outputs
    return Row("file", recipe, found == right, round(seconds, 2), "s", f"the CPU {on_cpu:.2f} s")


def imatrix(trial: Trial, what: str) -> Row:
    output = trial.folder / "imatrix.gguf"
    text = ["-f", str(EXAMPLE / "calibration.txt"), "--chunks", "2" if trial.small else "32"]
    return _command("imatrix", trial, "imatrix", str(EXAMPLE), *text, "-o", str(output))


def evaluate(trial: Trial, what: str) -> Row:
    """Of a quantized file, so that decoders run inside a model."""
    file = trial.folder / "quantized.gguf"
    _run(_quantmill("quantize", "--device", "cpu", str(EXAMPLE), str(file), "Q4_K_M"))
    text = ["--text", str(EXAMPLE / "evaluation.txt"), "--chunks", "1" if trial.small else "8"]
    return _command("evaluate", trial, "evaluate", "--base", str(EXAMPLE), *text, str(file))


def polish(trial: Trial, what: str) -> Row:
    if trial.small:
        return Row("polish", what, None, None, "", "skipped: --small")
    file = trial.folder / "plain.gguf"
    _run(_quantmill("quantize", "--device", "cpu", str(EXAMPLE), str(file), "Q4_0"))
    text = ["--calibration", str(EXAMPLE / "calibration.txt"), "--chunks", "16"]
    return _command("polish", trial, "polish", str(file), "--base", str(EXAMPLE), *text)


def learned(trial: Trial, what: str) -> Row:
    """A file of the example in Q4_K_M, with codes that were compensated, a layer that was left out, or experts."""
    output = trial.folder / f"{what}.gguf"
    text = ["--calibration", str(EXAMPLE / "calibration.txt"), *_LEARNED[what]]
    return _command("learned", trial, "quantize", str(EXAMPLE), str(output), "Q4_K_M", *text, what=what)


def _run(arguments: list[str]) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])
    return done.stdout


def _quantmill(*arguments: str) -> list[str]:
    return ["-m", "quantmill", *arguments]


def _command(section: str, trial: Trial, *arguments: str, what: str = "") -> Row:
    """A command of quantmill on the device; its time and the last line that it says."""
    started = time.perf_counter()
    said = _run(_quantmill(*arguments, "--device", trial.engine.device))
    seconds = round(time.perf_counter() - started, 2)
    return Row(section, what or arguments[0], True, seconds, "s", (said.strip().splitlines() or [""])[-1])


def _speeds(trial: Trial) -> list[str]:
    return ["disk", "upload", *_types(trial)[: 1 if trial.small else None]]


def _recipes(trial: Trial) -> list[str]:
    return ["Q4_K_M"] if trial.small else ["Q4_K_M", "IQ3_M", "Q8_0"]


SECTIONS: Mapping[str, Section] = {
    "searches": Section(lambda trial: list(_searches(trial)), search),
    "decoders": Section(_types, decoder),
    "speeds": Section(_speeds, speed),
    "file": Section(_recipes, whole_file),
    "imatrix": Section(lambda trial: ["imatrix"], imatrix),
    "evaluate": Section(lambda trial: ["evaluate"], evaluate),
    "polish": Section(lambda trial: ["polish"], polish),
    "learned": Section(lambda trial: list(_LEARNED), learned),
}
