"""What a polish keeps on disk until it is done, so that a killed run goes on to the same bytes."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from quantmill.calibrate.teacher import HiddenStates
from quantmill.calibrate.training import Training
from quantmill.errors import left_behind, of_another_run
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.filesystem import beside
from quantmill.gguf_io.partial import PartialFile, resolved, write_whole
from quantmill.jobs.errors import JobError
from quantmill.jobs.finished_layers import is_unsaid

SUFFIX = ".quantmill-polish"
_EVERY_S = 30.0
_LEAST_WORK = 20  # times as long as it takes to save


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
        self._saved, self._took = time.monotonic(), 0.0
        mark = self.directory / "run.json"
        if self.directory.exists() and not is_unsaid(mark):
            if not resume:
                raise JobError(left_behind(self.directory))
            found = mark.read_text(encoding="utf-8") if mark.exists() else ""
            if found != json.dumps({"identity": identity}):
                raise JobError(of_another_run(self.directory, "model, base, text or options"))
        self.directory.mkdir(exist_ok=True)
        write_whole(resolved(mark), json.dumps({"identity": identity}).encode())

    def hidden_states(self, what: str, n_ctx: int, n_hidden: int) -> HiddenStates:
        return HiddenStates(self.directory / f"teacher-{what}.f32", n_ctx, n_hidden)

    def save(self, training: Training, soon: bool = False) -> None:
        """Save the training's state, at most every half minute and for a twentieth of the time unless `soon`."""
        began = time.monotonic()
        if not soon and began - self._saved < max(_EVERY_S, _LEAST_WORK * self._took):
            return
        buffer = io.BytesIO()
        torch.save(training.state(), buffer)
        large = self._large(training.n_done)
        try:
            self._write_large(training, large)
            write_whole(resolved(self.directory / "training.pt"), buffer.getvalue())
            for older in self.directory.glob("tensors-*.raw"):
                if older != large:
                    older.unlink()
        except (GGUFError, OSError) as error:
            self._warn(f"what is finished could not be saved: {error}")
        self._saved = time.monotonic()
        self._took = self._saved - began

    def _large(self, n_done: int) -> Path:
        """Beside the state of a step: what is too large to be put together in memory first."""
        return self.directory / f"tensors-{n_done}.raw"

    def _write_large(self, training: Training, target: Path) -> None:
        large = training.large_state()
        if large:
            with PartialFile(resolved(target), sum(part.nbytes for part in large)) as file:
                position = 0
                for part in large:
                    data = part.cpu().contiguous().view(-1).view(torch.uint8).numpy()
                    file.write_at(position, data.data)
                    position += part.nbytes
                file.finish()

    def restore(self, training: Training) -> None:
        """Go on where a state was saved, if one was."""
        target = self.directory / "training.pt"
        if target.exists():
            try:
                state = torch.load(target, weights_only=True)
                training.resume(state, lambda parts: self._fill(len(state["losses"]), parts))
            except (KeyError, RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
                raise JobError(
                    f"{target}: cannot be read ({error}); repeat the command to begin anew"
                ) from None

    def _fill(self, n_done: int, parts: Sequence[torch.Tensor]) -> None:
        """Read what was written at this step."""
        if parts:
            with open(self._large(n_done), "rb") as file:
                for part in parts:
                    data = np.fromfile(file, np.uint8, part.nbytes)
                    if data.nbytes != part.nbytes:
                        raise EOFError(f"{file.name} is too short")
                    part.copy_(torch.from_numpy(data).view(part.dtype).view(part.shape))

    @property
    def advice(self) -> str:
        return f"what was done is in {self.directory}: go on with --resume"

    def remove(self) -> None:
        shutil.rmtree(self.directory)
