"""What a polish keeps on disk until it is done, so that a killed run goes on to the same bytes."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
from pathlib import Path

import torch

from quantmill.calibrate.polish import Training
from quantmill.calibrate.teacher import HiddenStates
from quantmill.gguf_io.filesystem import beside
from quantmill.jobs.errors import JobError

SUFFIX = ".quantmill-polish"
_EVERY_S = 30.0


class Kept:
    """The directory `<output>.quantmill-polish`: which run it belongs to, the teacher's states, the training's state.

    identity: of everything that decides the result. Raises JobError for a directory of another run, or one that is
    there without `resume`.
    """

    def __init__(self, output: Path, identity: str, resume: bool) -> None:
        self.directory = beside(output, SUFFIX)
        self._saved = time.monotonic()
        mark = self.directory / "run.json"
        if self.directory.exists():
            if not resume:
                raise JobError(
                    f"{self.directory}: a run that was stopped left this; go on with --resume, or remove it to "
                    "begin anew"
                )
            found = mark.read_text(encoding="utf-8") if mark.exists() else ""
            if found != json.dumps({"identity": identity}):
                raise JobError(
                    f"{self.directory}: belongs to another run (model, base, text or options differ); repeat the "
                    "command that wrote it, or remove it to begin anew"
                )
        self.directory.mkdir(exist_ok=True)
        _write(mark, json.dumps({"identity": identity}).encode())

    def hidden_states(self, n_ctx: int, n_hidden: int) -> HiddenStates:
        return HiddenStates(self.directory / "teacher.f32", n_ctx, n_hidden)

    def save(self, training: Training, soon: bool = False) -> None:
        """Save the training's state, at most every half minute unless `soon`."""
        if soon or time.monotonic() - self._saved > _EVERY_S:
            target = self.directory / "training.pt"
            torch.save(training.state(), target.with_suffix(".new"))
            os.replace(target.with_suffix(".new"), target)
            self._saved = time.monotonic()

    def restore(self, training: Training) -> None:
        """Go on where a state was saved, if one was."""
        target = self.directory / "training.pt"
        if target.exists():
            try:
                training.resume(torch.load(target, weights_only=True))
            except (KeyError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                raise JobError(
                    f"{target}: cannot be read ({error}); repeat the command to begin anew"
                ) from None

    def remove(self) -> None:
        shutil.rmtree(self.directory)


def _write(path: Path, content: bytes) -> None:
    path.with_suffix(".new").write_bytes(content)
    os.replace(path.with_suffix(".new"), path)
