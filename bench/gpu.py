"""Everything that one look at a GPU should settle: python -m bench.gpu [--device cuda] [--minutes 8] [--out gpu.json].

Each section runs in a process of its own and says each row as soon as it is known. What fails, does not answer or is
cut off by the clock is a row; the next item follows, in a new process where the device is lost. What a machine lacks is
skipped with its reason. A JSON file, written anew behind each section, and a table.

On a machine without a network: `python -m bench.gpu --pack FOLDER` elsewhere first, copy the folder, and follow its
README. `--small` is for a try without a GPU: a few types, a small model; with TRITON_INTERPRET=1 and
`--device cpu --engine triton` the kernels are interpreted.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from bench.gpu_pack import pack
from bench.gpu_sections import ROOT, SECTIONS, Row, Trial
from bench.machine import describe
from bench.tables import Column, markdown
from quantmill.qkernels.engines import Engine, choose_engines, serving

# An item that says nothing for so long hangs: compiling the largest kernel takes seconds.
_SILENT = 150
_OVER = "cut off: the time is over"
_LOST = 3  # exit code of a section whose device does nothing any more


def section(name: str, trial: Trial, after: str | None = None) -> bool:
    """In a process of its own: before each item behind `after` its name, then its row, as lines of JSON.

    False where the device is lost, so that only a new process can go on.
    """
    items = list(SECTIONS[name].items(trial))
    for item in items[items.index(after) + 1 if after in items else 0 :]:
        print(json.dumps({"begins": item}), flush=True)
        try:
            row = SECTIONS[name].look(trial, item)
        except Exception as error:  # noqa: BLE001 - the trial goes on, and this is what it is for
            line = (str(error).strip() or "no reason given").splitlines()[0]
            row = Row(name, item, False, None, "", f"{error.__class__.__name__}: {line}")
        print(json.dumps(asdict(row)), flush=True)
        if row.ok is False and not _answers(trial.engine.device):
            return False
    return True


def _answers(device: str) -> bool:
    """Whether a device still computes: some errors of a driver are those of all that comes after."""
    import torch

    try:
        return int(torch.ones(2, device=device).sum()) == 2
    except Exception:  # noqa: BLE001 - whatever a driver raises
        return False


def look(
    options: list[str], seconds: float, keep: Callable[[list[Row]], None] = lambda rows: None
) -> list[Row]:
    """All sections, one after another, until the time is over; each but the last has half of what is left of it.

    keep: is given all rows behind each section.
    """
    found: list[Row] = []
    end = time.monotonic() + seconds
    for name in SECTIONS:
        left = end - time.monotonic()
        share = left if name == list(SECTIONS)[-1] else left / 2
        if left <= 0:
            found.append(Row(name, "skipped", None, None, "", "the time is over"))
        else:
            for row in _rows(name, options, time.monotonic() + share):
                print(f"{row.section}: {_said(row)}", file=sys.stderr, flush=True)
                found.append(row)
        keep(found)
    return found


def _rows(name: str, options: list[str], end: float) -> Iterator[Row]:
    """Those of a section, in as many processes as it takes."""
    after: list[str] = []
    while True:
        begun = ""
        command = [sys.executable, "-m", "bench.gpu", "--section", name, *after, *options]
        with tempfile.TemporaryFile("w+") as complaints, _Child(command, complaints) as child:
            for line in child.lines(end):
                if line.startswith('{"begins"'):
                    begun = json.loads(line)["begins"]
                elif line.startswith('{"section"'):
                    yield Row(**json.loads(line))
                    after, begun = ["--after", begun], ""
            code = child.ended()
            complaints.seek(0)
            why = child.why or (complaints.read().strip() or f"exit code {code}").splitlines()[-1]
        ok = None if why == _OVER else False
        if begun:
            yield Row(name, begun, ok, None, "", why)
            after = ["--after", begun]
        elif code not in (0, _LOST):
            yield Row(name, "failed", ok, None, "", why)
            return
        if code == 0 or time.monotonic() >= end:
            return


class _Child:
    """A process with all that it starts. `why`: what it was ended for."""

    def __init__(self, command: list[str], complaints: IO[str]) -> None:
        self.why = ""
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=complaints, text=True, start_new_session=True
        )
        self._said: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said.put(line)
        self._said.put(None)

    def lines(self, end: float) -> Iterator[str]:
        """As they come, until there are no more, none for long, or the time is over."""
        while True:
            left = end - time.monotonic()
            try:
                line = self._said.get(timeout=max(0.0, min(_SILENT, left)))
            except queue.Empty:
                self.why = f"no answer for {_SILENT} s" if left > _SILENT else _OVER
                return
            if line is None:
                return
            yield line

    def ended(self) -> int:
        if self.why:
            self._kill()
        return self._process.wait()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._process.poll() is None:
            self._kill()
            self._process.wait()


def _said(row: Row) -> str:
    """What a row found, without what it does not have."""
    verdict = "" if row.ok is None else "right" if row.ok else "wrong"
    value = "" if row.value is None else f"{row.value:.2f} {row.unit}"
    return ", ".join(part for part in (row.what, verdict, value, row.note) if part)


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
    parser.add_argument("--after", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.pack:
        pack(given.pack, given.python)
        return
    (engine, *_) = choose_engines(given.device)
    if given.engine:
        engine = Engine(given.engine, engine.device, "asked for")
    elif engine.row is serving("cpu"):
        parser.error(f"no GPU to look at ({engine.why}); to try without: --small --device cpu --engine torch")
    if given.section:
        trial = Trial(engine, given.small, given.folder)
        sys.exit(0 if section(given.section, trial, given.after) else _LOST)
    facts = asdict(describe("bench.gpu", sys.argv[1:]))

    def keep(rows: list[Row]) -> None:
        given.out.write_text(json.dumps({"machine": facts, "rows": [asdict(row) for row in rows]}, indent=1))

    with tempfile.TemporaryDirectory(dir=given.out.resolve().parent) as folder:
        options = ["--device", engine.device, "--engine", engine.name, "--folder", folder]
        options += ["--small"] if given.small else []
        rows = look(options, 60 * given.minutes, keep)
    print(markdown(_COLUMNS, rows))
    wrong = [row for row in rows if row.ok is False]
    print(f"\n{len(rows)} rows, {len(wrong)} wrong; written to {given.out}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
