"""Everything that one look at a GPU should settle: python -m bench.gpu [--device cuda] [--minutes 8] [--out gpu.json].

Each section runs in a process of its own and says each row as soon as it is known, so that one that fails, or is cut
off by the clock, takes nothing with it. What a machine lacks is skipped with its reason. A JSON file and a table.

On a machine without a network: `python -m bench.gpu --pack FOLDER` elsewhere first, copy the folder, and follow its
README. `--small` is for a try without a GPU: a few types, a small model; with TRITON_INTERPRET=1 and
`--device cpu --engine triton` the kernels are interpreted.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench.gpu_pack import ORACLE, pack
from bench.machine import describe
from bench.tables import Column, markdown
from quantmill.qkernels.engines import Engine, choose_engines

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "tiny-qwen3-moe"
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
    """What is looked at, and how much of it."""

    engine: Engine
    small: bool
    folder: Path


Section = Callable[[Trial], Iterator[Row]]


def _types(trial: Trial) -> list[str]:
    from quantmill.jobs.check_devices import quantized_types

    return [name for name in quantized_types() if not trial.small or name in _SMALL_TYPES]


def searches(trial: Trial) -> Iterator[Row]:
    """All types, with and without importance: bytes of hard rows against llama.cpp's, or the CPU engine's."""
    from quantmill.qkernels.cpu_engine import quantize_stored
    from quantmill.qkernels.device import DeviceQuantizer
    from quantmill.qkernels.encoders import encoders
    from quantmill.qkernels.hard_blocks import hard_importance, hard_rows
    from quantmill.qkernels.types import TYPES

    known = np.load(ORACLE) if ORACLE.exists() else {}
    rows = hard_rows()[:: 64 if trial.small else 1]
    for type, weighted in encoders():
        if type not in _types(trial):
            continue
        importance = hard_importance() if weighted else None
        quantizer = DeviceQuantizer(trial.engine)
        started = time.perf_counter()
        found = quantizer.quantize(rows.view(np.uint8), "F32", type, importance)
        seconds = time.perf_counter() - started
        key = f"{type}-{'weighted' if weighted else 'plain'}"
        if key in known and not trial.small:
            expected, judge = known[key], "llama.cpp"
        else:
            expected, judge = quantize_stored(rows.view(np.uint8), "F32", type, importance), "the CPU engine"
        size = TYPES[type].bytes
        wrong = int((found.reshape(-1, size) != expected.reshape(-1, size)).any(1).sum())
        note = (
            f"{wrong} of {expected.size // size} blocks are not those of {judge}, first call {seconds:.1f} s"
        )
        yield Row("searches", key, not wrong, None, "", note)


def decoders(trial: Trial) -> Iterator[Row]:
    """All types decoded from random bytes, as the CPU does it."""
    import torch

    from quantmill.qkernels import dequantize
    from quantmill.qkernels.device import decode
    from quantmill.qkernels.types import TYPES

    for type in _types(trial):
        row = TYPES[type]
        blocks = np.random.default_rng(row.id).integers(0, 256, (600, row.bytes), np.uint8)
        there = torch.from_numpy(blocks).to(trial.engine.device)
        out = torch.empty((600, row.block), device=trial.engine.device)
        decode(trial.engine.row, row, there, out, "F32")
        found, expected = out.cpu().numpy(), dequantize(blocks, type)
        same = (found.view(np.uint32) == expected.view(np.uint32)) | (np.isnan(found) & np.isnan(expected))
        yield Row("decoders", type, bool(same.all()), None, "", f"{int((~same).sum())} numbers differ")


def speeds(trial: Trial) -> Iterator[Row]:
    """Mweights a second from memory to memory, and what limits a file of F16 weights here."""
    from quantmill.jobs.check_devices import check, limits, slowest

    found = limits(trial.engine)
    yield Row("speeds", "disk", None, found.disk, "GB/s")
    yield Row("speeds", "upload", None, found.upload, "GB/s")
    for type in _types(trial)[: 1 if trial.small else None]:
        (row,) = check([trial.engine], [type], seconds=0.05 if trial.small else 0.5)
        name, most = slowest(row, found)
        registers = f", {row.registers} registers" if row.registers else ""
        note = row.fault or f"limited by {name} to {most:.0f}{registers}"
        yield Row("speeds", type, row.identical is not False, row.mweights, "Mweights/s", note)


def whole_file(trial: Trial) -> Iterator[Row]:
    """The driver from file to file, against the CPU's file."""
    for package in ("gguf", "typer"):
        if importlib.util.find_spec(package) is None:
            yield Row("file", "skipped", None, None, "", f"{package} is not installed")
            return
    model = trial.folder / "model.gguf"
    size = ["--layers", "1", "--vocabulary", "512"] if trial.small else ["--layers", "4"]
    _run(["-m", "bench.synthetic", str(model), *size])
    for recipe in ("Q4_K_M",) if trial.small else ("Q4_K_M", "IQ3_M", "Q8_0"):
        outputs: list[tuple[bytes, float]] = []
        for device in ("cpu", trial.engine.device):
            output = trial.folder / f"{recipe}-{device.replace(':', '')}-{len(outputs)}.gguf"
            importance = ["--imatrix", str(model.with_name("model-imatrix.gguf"))]
            started = time.perf_counter()
            _run(_quantmill("quantize", *importance, "--device", device, str(model), str(output), recipe))
            outputs.append((output.read_bytes(), time.perf_counter() - started))
            output.unlink()
        (right, on_cpu), (found, seconds) = outputs
        yield Row("file", recipe, found == right, round(seconds, 2), "s", f"the CPU {on_cpu:.2f} s")


def imatrix(trial: Trial) -> Iterator[Row]:
    output = trial.folder / "imatrix.gguf"
    text = ["-f", str(EXAMPLE / "calibration.txt"), "--chunks", "2" if trial.small else "32"]
    yield _command("imatrix", trial, "imatrix", str(EXAMPLE), *text, "-o", str(output))


def evaluate(trial: Trial) -> Iterator[Row]:
    """Of a quantized file, so that decoders run inside a model."""
    file = trial.folder / "quantized.gguf"
    _run(_quantmill("quantize", "--device", "cpu", str(EXAMPLE), str(file), "Q4_K_M"))
    text = ["--text", str(EXAMPLE / "evaluation.txt"), "--chunks", "1" if trial.small else "8"]
    yield _command("evaluate", trial, "evaluate", "--base", str(EXAMPLE), *text, str(file))


def polish(trial: Trial) -> Iterator[Row]:
    if trial.small:
        yield Row("polish", "skipped", None, None, "", "--small")
        return
    file = trial.folder / "plain.gguf"
    _run(_quantmill("quantize", "--device", "cpu", str(EXAMPLE), str(file), "Q4_0"))
    text = ["--calibration", str(EXAMPLE / "calibration.txt"), "--chunks", "16"]
    yield _command("polish", trial, "polish", str(file), "--base", str(EXAMPLE), *text)


SECTIONS: dict[str, Section] = {
    "searches": searches,
    "decoders": decoders,
    "speeds": speeds,
    "file": whole_file,
    "imatrix": imatrix,
    "evaluate": evaluate,
    "polish": polish,
}


def _quantmill(*arguments: str) -> list[str]:
    return ["-m", "quantmill", *arguments]


def _run(arguments: list[str]) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])
    return done.stdout


def _command(section: str, trial: Trial, *arguments: str) -> Row:
    """A command of quantmill on the device; its time and the last line that it says."""
    started = time.perf_counter()
    said = _run(_quantmill(*arguments, "--device", trial.engine.device))
    seconds = round(time.perf_counter() - started, 2)
    return Row(section, arguments[0], True, seconds, "s", (said.strip().splitlines() or [""])[-1])


def section(name: str, trial: Trial) -> None:
    """In a process of its own: rows as lines of JSON. A failure ends the section and is its last row."""
    try:
        for row in SECTIONS[name](trial):
            print(json.dumps(asdict(row)), flush=True)
    except Exception as error:  # noqa: BLE001 - the trial goes on, and this is what it is for
        line = (str(error).strip() or "no reason given").splitlines()[0]
        print(json.dumps(asdict(Row(name, "failed", False, None, "", f"{error.__class__.__name__}: {line}"))))


def _said(row: Row) -> str:
    """What a row found, without what it does not have."""
    verdict = "" if row.ok is None else "right" if row.ok else "wrong"
    value = "" if row.value is None else f"{row.value:.2f} {row.unit}"
    return ", ".join(part for part in (row.what, verdict, value, row.note) if part)


def look(options: list[str], seconds: float) -> list[Row]:
    """All sections, one after another, until the time is over."""
    found: list[Row] = []
    end = time.monotonic() + seconds
    for name in SECTIONS:
        left = end - time.monotonic()
        if left <= 0:
            found.append(Row(name, "skipped", None, None, "", "the time is over"))
            continue
        command = [sys.executable, "-m", "bench.gpu", "--section", name, *options]
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            out, err = child.communicate(timeout=left)
            broken = child.returncode != 0
        except subprocess.TimeoutExpired:
            child.kill()
            out, err = child.communicate()
            err, broken = "cut off: the time is over", True
        rows = [Row(**json.loads(line)) for line in out.splitlines() if line.startswith('{"section"')]
        if broken:
            rows.append(Row(name, "failed", False, None, "", (err.strip() or "no reason").splitlines()[-1]))
        for row in rows:
            print(f"{row.section}: {_said(row)}", file=sys.stderr)
        found += rows
    return found


_COLUMNS = (
    Column("section", "section"),
    Column("what", "what"),
    Column("right", "ok"),
    Column("value", "value", "{:.2f}"),
    Column("unit", "unit"),
    Column("note", "note"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--engine", help="instead of the one that serves the device")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--pack", type=Path, metavar="FOLDER")
    parser.add_argument("--python", default="3.12", metavar="X.Y", help="that the packed packages are for")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.pack:
        pack(given.pack, given.python)
        return
    (engine, *_) = choose_engines(given.device)
    if given.engine:
        engine = Engine(given.engine, engine.device, "asked for")
    if given.section:
        with tempfile.TemporaryDirectory(dir=given.out.parent) as folder:
            section(given.section, Trial(engine, given.small, Path(folder).resolve()))
        return
    options = ["--device", engine.device, "--engine", engine.name, "--out", str(given.out.resolve())]
    options += ["--small"] if given.small else []
    rows = look(options, 60 * given.minutes)
    facts = asdict(describe("bench.gpu", sys.argv[1:]))
    given.out.write_text(json.dumps({"machine": facts, "rows": [asdict(row) for row in rows]}, indent=1))
    print(markdown(_COLUMNS, rows))
    wrong = [row for row in rows if row.ok is False]
    print(f"\n{len(rows)} rows, {len(wrong)} wrong; written to {given.out}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
