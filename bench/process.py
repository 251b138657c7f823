"""Run a program and see what it takes: time, memory, and how long it did nothing but wait for the disk."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

_PERIOD = 0.01
_OWN = re.compile(r"^(?:RssAnon|RssShmem):\s+(\d+) kB$", re.MULTILINE)
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True)
class Usage:
    """Seconds and bytes of one run. On systems without /proc the last two are None.

    `peak_bytes`: resident memory, mapped files included; `own_bytes`: without files, which the system can drop.
    `waiting`: share of the time in which some thread waited for the disk and none ran.
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int
    own_bytes: int | None
    waiting: float | None


class _Watch(threading.Thread):
    """Looks at a process and its threads every hundredth of a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.folder = Path(f"/proc/{pid}")
        self.over = threading.Event()
        self.samples = self.waiting = self.peak = self.own = 0

    def run(self) -> None:
        while not self.over.wait(_PERIOD):
            try:
                states = {_state(task) for task in (self.folder / "task").iterdir()}
                status = (self.folder / "status").read_text()
            except OSError:
                continue  # a thread ended while we looked, or the process did
            self.samples += 1
            self.waiting += "D" in states and "R" not in states
            self.own = max(self.own, 1024 * sum(int(kb) for kb in _OWN.findall(status)))
            self.peak = max([self.peak, *(1024 * int(kb) for kb in _PEAK.findall(status))])


def _state(task: Path) -> str:
    # the name before the state is in brackets and may itself contain them
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


def run(command: list[str], said: Path | None = None) -> Usage:
    """Run a command to its end; `said`: a file for what it writes to stdout.

    Python's bytecode is kept, as for a user, wherever this runs. Raises RuntimeError with what the program wrote to
    stderr when it fails.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    with (
        (said or Path(os.devnull)).open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.PIPE, env=environment) as process,
    ):
        watch = _Watch(process.pid)
        watch.start()
        assert process.stderr is not None
        complaint = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        watch.over.set()
        watch.join()
    if process.returncode:
        raise RuntimeError(
            f"{command[0]} ended with {process.returncode}: {complaint.decode(errors='replace')}"
        )
    cpu = used.ru_utime + used.ru_stime
    if not watch.samples:
        return Usage(wall, cpu, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024), None, None)
    return Usage(wall, cpu, watch.peak, watch.own, watch.waiting / watch.samples)
