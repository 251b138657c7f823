"""Every job on Ray beside the same without it: `python -m bench.ray_jobs --work DIR [--hosts N ...] [--jobs NAME ...]`.

SmolLM2 (bench.materials, made in DIR where it is missing) on clusters of N raylets of one processor each: quantize of
one type, of several and into splits, convert, imatrix, evaluate, compensation and squeeze, with the calls of
tests/support/ray_jobs.py. What comes out must be what the same call makes on one thread without Ray, in every tensor,
key and number; one that differs is said in the table, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import machine, materials, tables
from tests.support.ray_jobs import Call, Given, calls, found, left_running, words_of
from tests.support.raylets import raylets

_WORKERS = re.compile(r"^(\d+) workers? on Ray: ", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """workers: that began, of a job with several crews the most at once; none without Ray. same: as without Ray."""

    job: str
    hosts: int | None
    workers: int | None
    wall_s: float
    same: bool | None


_COLUMNS = (
    tables.Column("job", "job"),
    tables.Column("raylets", "hosts", "{:d}"),
    tables.Column("workers", "workers", "{:d}"),
    tables.Column("wall, s", "wall_s", "{:.1f}"),
    tables.Column("the same as without Ray", "same"),
)


def given(work: Path, few: tuple[str, ...], learned: str) -> Given:
    """SmolLM2 in the forms that the jobs take, made where they are missing."""
    f16, texts = materials.smollm2(work), materials.texts(work)
    checkpoint = materials.smollm2_checkpoint(work)
    kinds = {kind: work / f"{f16.stem}-{kind}.gguf" for kind in ("Q8_0", "Q4_0")}
    for kind, path in kinds.items():
        if not path.exists():
            _command("quantize", str(f16), str(path), kind)
    importance = work / "smollm2-imatrix.gguf"
    if not importance.exists():
        _command("imatrix", str(f16), "-f", str(texts["calibration"]), *few, "-o", str(importance))
    return Given(
        str(checkpoint),
        f16=str(f16),
        q8=str(kinds["Q8_0"]),
        q4=str(kinds["Q4_0"]),
        calibration=str(texts["calibration"]),
        evaluation=str(texts["evaluation"]),
        importance=str(importance),
        few=few,
        buffer="16",
        learned=learned,
    )


def _command(*words: str) -> str:
    """What it said on stderr. Raises RuntimeError with that where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "quantmill", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{words[0]} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stderr


def row(name: str, call: Call, folder: Path, hosts: int | None, address: str | None, wanted: Any) -> Row:
    """One call, whose files are left in `folder`. wanted: what must come of it; None where that is found out."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    words = [*words_of(call, folder), "--threads", "1"]
    words += [] if address is None else [f"--ray={address}", *call.on_ray]
    began = time.perf_counter()
    said = _command(*words)
    wall = time.perf_counter() - began
    if left_running():
        raise RuntimeError(f"{name}: workers are left running")
    workers = None if address is None else max(map(int, _WORKERS.findall(said)))
    return Row(name, hosts, workers, wall, None if wanted is None else found(folder) == wanted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--jobs", nargs="+", metavar="NAME")
    parser.add_argument("--ctx", default="128")
    parser.add_argument("--chunks", default="8")
    parser.add_argument("--learned", default="4", help="chunks of 512 tokens of the compensation")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    here = machine.describe("bench.ray_jobs", sys.argv[1:])
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    every = calls(given(work, ("--ctx", options.ctx, "--chunks", options.chunks), options.learned))
    jobs = {name: every[name] for name in options.jobs or every}
    rows, wanted = [], {}
    for name, call in jobs.items():
        rows.append(row(name, call, work / "here", None, None, None))
        print(rows[-1], flush=True)
        wanted[name] = found(work / "here")
    for hosts in options.hosts:
        with raylets(hosts) as cluster:
            for name, call in jobs.items():
                rows.append(row(name, call, work / "there", hosts, cluster.address, wanted[name]))
                print(rows[-1], flush=True)
    rows.sort(key=lambda one: list(jobs).index(one.job))
    title = f"Every job on Ray and without it: SmolLM2, {options.chunks} chunks of {options.ctx} tokens"
    tables.report(options.out, title, here, _COLUMNS, rows)
    for folder in ("here", "there"):
        shutil.rmtree(work / folder)
    if not all(one.same for one in rows if one.hosts):
        sys.exit("not all are the same")


if __name__ == "__main__":
    main()
