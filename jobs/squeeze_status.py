"""Where a squeeze stands, from what it left in its folder: running, stopped or finished, and its stages."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from quantmill.jobs.errors import JobError
from quantmill.jobs.memory import Memory
from quantmill.jobs.squeeze_request import MEMORY
from quantmill.jobs.squeeze_watch import StageRow
from quantmill.jobs.stages import PROGRESS, RUN


@dataclass(frozen=True)
class Status:
    """state: running, stopped or finished. progress: what of the running stage is done, as (what, done, total)."""

    state: str
    command: str
    stages: tuple[StageRow, ...]
    progress: tuple[str, int, int] | None
    files: tuple[str, ...]


def status_of(directory: Path) -> Status:
    """Raises JobError where no squeeze has worked."""
    memory = Memory(directory / MEMORY)
    facts = memory.facts(RUN)
    if facts is None:
        raise JobError(f"{directory}: no squeeze has begun here (there is no {MEMORY} of one in it)")
    running = memory.is_held
    state = "running" if running else "finished" if facts.get("finished") else "stopped"
    rows = tuple(
        StageRow(label, "waiting" if was == "running" and not running else was, seconds)
        for label, was, seconds in facts["stages"]
    )
    return Status(
        state, facts["command"], rows, _progress(memory) if running else None, tuple(facts.get("files", ()))
    )


def _progress(memory: Memory) -> tuple[str, int, int] | None:
    try:
        found = json.loads((memory.directory / f"{PROGRESS}.json").read_bytes())
    except (OSError, ValueError):
        return None
    return found["what"], found["done"], found["total"]
