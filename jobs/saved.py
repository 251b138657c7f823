"""What an evaluation has finished, kept beside its output until the output is there."""

from __future__ import annotations

import hashlib
import io
import json
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quantmill.errors import left_behind, of_another_run
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.kinds import starting_with
from quantmill.gguf_io.partial import companion, write_whole
from quantmill.jobs.errors import JobError

SUFFIX = ".partial.npz"
SAVED = starting_with("a saved part of an evaluation", b"PK\x03\x04")
EVERY = 10.0  # seconds between two savings: what a killed run loses
_ABOUT = "about"  # the array that holds the facts, as JSON


def saved_path(output: Path) -> Path:
    """Where the unfinished evaluation of `output` lies; output: links followed."""
    return companion(output, SUFFIX)


def identity_of(options: Mapping[str, Any], paths: Sequence[Path]) -> str:
    """A hash of all that decides the numbers: options, and the files by name, size and time."""
    files = [
        (file.name, file.stat().st_size, file.stat().st_mtime_ns)
        for path in paths
        for file in (sorted(path.glob("*.safetensors")) if path.is_dir() else [path])
    ]
    described = json.dumps([options, files], default=str, sort_keys=True)
    return hashlib.sha256(described.encode("utf-8", "surrogateescape")).hexdigest()


class Saved:
    """Arrays and facts by name, in `path` (None: kept nowhere). identity: of all that decides the numbers."""

    def __init__(
        self,
        path: Path | None,
        identity: str,
        resume: bool,
        warn: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._warn = warn
        self.path = path
        self.arrays: dict[str, np.ndarray] = {}
        self.facts: dict[str, Any] = {}
        self._identity = identity
        self._saved_at = time.monotonic()
        if path is not None and path.exists():
            if not resume:
                raise JobError(left_behind(path))
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
                arrays = {name: found[name] for name in found.files}
            about = json.loads(str(arrays.pop(_ABOUT)))
            identity, facts = about["identity"], about["facts"]
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            raise JobError(f"{path}: is no saved evaluation; remove it to begin anew") from None
        if identity != self._identity:
            raise JobError(of_another_run(path, "models, text, tasks or options"))
        self.arrays, self.facts = arrays, facts

    def part(self, name: str) -> dict[str, np.ndarray]:
        """The arrays that were put under `name`; none when nothing was."""
        start = f"{name}/"
        return {key.removeprefix(start): value for key, value in self.arrays.items() if key.startswith(start)}

    def put(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays |= {f"{name}/{key}": value for key, value in arrays.items()}

    def forget(self, name: str) -> None:
        """Do again what was put under `name`."""
        self.arrays = {key: value for key, value in self.arrays.items() if not key.startswith(f"{name}/")}

    @property
    def is_due(self) -> bool:
        return self.path is not None and time.monotonic() - self._saved_at >= EVERY

    def keep(self) -> None:
        """Write what has been put. A full disk is a warning, for it must not end the work; the last saving stays."""
        if self.path is None or not (self.arrays or self.facts):
            return
        about = json.dumps({"identity": self._identity, "facts": self.facts})
        buffer = io.BytesIO()
        np.savez(buffer, **{_ABOUT: np.array(about)}, **self.arrays)  # type: ignore[arg-type]
        try:
            write_whole(self.path, buffer.getvalue())
        except (GGUFError, OSError) as error:
            self._warn(f"what is finished could not be saved: {error}")
        self._saved_at = time.monotonic()

    @property
    def advice(self) -> str:
        """What an interrupted user can do."""
        if self.path is not None and self.path.exists():
            return f"what was finished is in {self.path}: go on with --resume"
        return "nothing was finished" if self.path is not None else "with -o FILE, what is finished is kept"

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)
