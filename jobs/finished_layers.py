"""Layers of a long run that are done, kept beside the output until it is: what --resume goes on from."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from quantmill.errors import left_behind
from quantmill.gguf_io.filesystem import beside
from quantmill.gguf_io.partial import partial_path, resolved, write_whole
from quantmill.jobs.errors import JobError, KeptError

SUFFIX = ".quantmill-layers"


def finished_path(output: Path) -> Path:
    """Where the finished layers of `output` lie until it is there."""
    return beside(output, SUFFIX)


def is_unsaid(note: Path) -> bool:
    """Whether a run was killed before it had said in `note` which one it is; then nothing else is in its folder."""
    return not note.exists() and all(path == partial_path(note) for path in note.parent.iterdir())


def advice_of(output: Path) -> str:
    """What somebody can do whose run was stopped."""
    path = finished_path(output)
    return (
        f"finished layers are in {path}: go on with --resume"
        if _file(path, 0).exists()
        else "no layer was finished yet"
    )


class FinishedLayers:
    """A directory `<output>.quantmill-layers`: run.json says of which run, one file a layer.

    run: everything that decides the bytes. Raises JobError when `resume` finds the layers of another run, and for
    layers that are there without `resume`.
    """

    def __init__(self, output: Path, run: Mapping[str, str], resume: bool) -> None:
        self.path = finished_path(output)
        self._run = dict(run)
        self.n_found = 0
        if self.path.exists() and not self.path.is_dir():
            raise JobError(f"{self.path}: finished layers would be kept in a folder of this name; remove it")
        self._has_said = False
        if not self.path.exists() or is_unsaid(self._note) or self._is_empty():
            return
        if not resume:
            raise JobError(left_behind(self.path))
        self._require_same()
        self._has_said = True
        while self._file(self.n_found).exists():
            self.n_found += 1

    def _is_empty(self) -> bool:
        """Whether a run has said in it which one it is, and finished nothing."""
        ours = {self._note, *map(partial_path, (self._note, self._file(0)))}
        return all(path in ours for path in self.path.iterdir())

    def _require_same(self) -> None:
        try:
            found = dict(json.loads(self._note.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            raise JobError(
                f"{self._note}: does not say of which run the layers are; remove {self.path} to begin anew"
            ) from None
        different = [key for key, value in self._run.items() if found.get(key) != value]
        if different:
            raise JobError(
                f"{self.path}: holds layers of another run (another {', '.join(different)}); repeat that run's "
                "options, or remove it to begin anew"
            )

    def read(self, layer: int) -> dict[str, np.ndarray]:
        """Tensor name → blocks u8 [n_mat, n_rows, row_bytes], and the run's numbers under other names.

        Raises KeptError for a file that is damaged.
        """
        return read_layer(self.path, layer)

    def write(self, layer: int, arrays: Mapping[str, np.ndarray]) -> None:
        """All of a layer or nothing. Raises GGUFError when the disk is full."""
        buffer = io.BytesIO()
        np.savez(buffer, **dict(arrays))  # type: ignore[arg-type]
        try:
            if not self._has_said:
                self.path.mkdir(exist_ok=True)
                write_whole(resolved(self._note), json.dumps(self._run, indent=1).encode())
                self._has_said = True
            write_whole(resolved(self._file(layer)), buffer.getvalue())
        except BaseException:
            if self.path.is_dir() and self._is_empty():
                self.remove()
            raise

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    @property
    def _note(self) -> Path:
        return self.path / "run.json"

    def _file(self, layer: int) -> Path:
        return _file(self.path, layer)


def read_layer(directory: Path, layer: int) -> dict[str, np.ndarray]:
    """See FinishedLayers.read."""
    file = _file(directory, layer)
    try:
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (ValueError, EOFError, TypeError, zipfile.BadZipFile):
        raise KeptError(f"{file}: is damaged; remove it, and --resume makes the layer again") from None


def _file(directory: Path, layer: int) -> Path:
    return directory / f"layer-{layer:04}.npz"
