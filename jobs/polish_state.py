"""What a polish keeps on disk until it is done, so that a killed run goes on to the same bytes."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch

from quantmill.calibrate.polish import Training
from quantmill.calibrate.teacher import HiddenStates
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.filesystem import beside
from quantmill.gguf_io.partial import resolved, write_whole
from quantmill.jobs.errors import JobError

SUFFIX = ".quantmill-polish"
_EVERY_S = 30.0


def kept_place(output: Path) -> Path:
    """Where lies what a run keeps until `output` is there."""
    return beside(output, SUFFIX)


class Kept:
    """The directory `<output>.quantmill-polish`: which run it belongs to, the teacher's states, the training's state.

    identity: of everything that decides the result. Raises JobError for a directory of another run, or one that is
    there without `resume`. warn: hears when the state cannot be saved, which does not end the work.
    """

    def __init__(self, output: Path, identity: str, resume: bool, warn: Callable[[str], None]) -> None:
        self.directory = kept_place(output)
        self._warn = warn
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
        write_whole(resolved(mark), json.dumps({"identity": identity}).encode())

    def hidden_states(self, what: str, n_ctx: int, n_hidden: int) -> HiddenStates:
        return HiddenStates(self.directory / f"teacher-{what}.f32", n_ctx, n_hidden)

    def save(self, training: Training, soon: bool = False) -> None:
        """Save the training's state, at most every half minute unless `soon`."""
        if soon or time.monotonic() - self._saved > _EVERY_S:
            buffer = io.BytesIO()
            torch.save(training.state(), buffer)
            try:
                write_whole(resolved(self.directory / "training.pt"), buffer.getvalue())
            except (GGUFError, OSError) as error:
                self._warn(f"what is finished could not be saved: {error}")
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

    @property
    def advice(self) -> str:
        return f"what was done is in {self.directory}: go on with --resume"

    def remove(self) -> None:
        shutil.rmtree(self.directory)
