"""Layers of a long run that are done, kept beside the output until it is: what --resume goes on from."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from quantmill.gguf_io.filesystem import beside
from quantmill.gguf_io.partial import resolved, write_whole
from quantmill.jobs.errors import JobError

SUFFIX = ".quantmill-layers"


def finished_path(output: Path) -> Path:
    """Where the finished layers of `output` lie until it is there."""
    return beside(output, SUFFIX)


class FinishedLayers:
    """A directory `<output>.quantmill-layers`: run.json says of which run, one file a layer.

    run: everything that decides the bytes. Raises JobError when `resume` finds the layers of another run, and for
    layers that are there without `resume`.
    """

    def __init__(self, output: Path, run: Mapping[str, str], resume: bool) -> None:
        self.path = finished_path(output)
        self._output, self._run = output, dict(run)
        self.n_found = 0
        if not self.path.exists():
            return
        if not resume:
            raise JobError(
                f"{self.path}: a run that was stopped left this; go on with --resume, or remove it to begin anew"
            )
        self._require_same()
        while self._file(self.n_found).exists():
            self.n_found += 1

    def _require_same(self) -> None:
        try:
            found = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            found = {}
        different = [key for key, value in self._run.items() if found.get(key) != value]
        if different:
            raise JobError(
                f"{self.path}: holds layers of another run (another {', '.join(different)}); repeat that run's "
                "options, or remove it to begin anew"
            )

    def read(self, layer: int) -> dict[str, np.ndarray]:
        """Tensor name → blocks u8 [n_mat, n_rows, row_bytes], and the run's numbers under other names."""
        return read_layer(self.path, layer)

    def write(self, layer: int, arrays: Mapping[str, np.ndarray]) -> None:
        """All of a layer or nothing. Raises GGUFError when the disk is full."""
        if not self.path.exists():
            self.path.mkdir()
            write_whole(resolved(self.path / "run.json"), json.dumps(self._run, indent=1).encode())
        buffer = io.BytesIO()
        np.savez(buffer, **dict(arrays))  # type: ignore[arg-type]
        write_whole(resolved(self._file(layer)), buffer.getvalue())

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def _file(self, layer: int) -> Path:
        return _file(self.path, layer)


def read_layer(directory: Path, layer: int) -> dict[str, np.ndarray]:
    """See FinishedLayers.read."""
    with np.load(_file(directory, layer), allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _file(directory: Path, layer: int) -> Path:
    return directory / f"layer-{layer:04}.npz"
