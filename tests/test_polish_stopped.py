"""Polish that is stopped, or ends early: by a kill, an interrupt, a full disk, held-back chunks."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from quantmill.calibrate.training import Training
from quantmill.errors import QuantmillError
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.partial import PartialFile
from quantmill.jobs import polish
from quantmill.jobs.polish import run
from quantmill.jobs.polish_state import Kept
from quantmill.jobs.watcher import Silent
from tests.support.polishing import CHUNKS, command, job, polished, quantmill


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    """Killed while the original listens, and again in training; an interrupt saves the last step."""
    output = tmp_path / "out.gguf"
    arguments = [sys.executable, "-m", "quantmill", *map(str, command(output))]
    kept = Path(f"{output}.quantmill-polish") / "teacher-trained.f32"
    listening, listened = (
        (lambda: _n_bytes(kept) > 0),
        (lambda: _n_bytes(kept) == (CHUNKS - 6) * 512 * 256 * 4),
    )
    for resume, moment, sent in (([], listening, signal.SIGKILL), (["--resume"], listened, signal.SIGINT)):
        process = subprocess.Popen([*arguments, *resume], stderr=subprocess.PIPE)
        _wait_for(moment)
        time.sleep(0 if sent == signal.SIGKILL else 3)  # into the training
        process.send_signal(sent)
        process.wait()
        assert not output.exists()
        assert process.returncode in (-signal.SIGKILL, 130)
    assert quantmill(*command(output)).stderr.count("go on with --resume") == 1
    done = quantmill(*command(output, "--resume"))
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == polished().read_bytes()
    assert not kept.parent.exists()


def _n_bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _wait_for(true) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


class Stops(Silent):
    """Interrupts when so many chunks have been trained on."""

    def __init__(self, after: int) -> None:
        self._left = after
        self._trains = False

    def began(self, what: str, total: int, unit: str) -> None:
        self._trains = what == "training"

    def progressed(self, n: int, note: str = "") -> None:
        if note and self._trains:
            self._left -= n
        if self._left <= 0:
            raise KeyboardInterrupt


def test_looks_at_held_back_chunks_do_not_change_the_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking in the middle, stopped behind that and gone on with; the last state is the best."""
    wanted = polished().read_bytes()
    monkeypatch.setattr(polish, "LOOK_CHUNKS", 9)
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        run(job(tmp_path / "out.gguf"), Stops(11))
    run(job(tmp_path / "out.gguf", resume=True))
    assert (tmp_path / "out.gguf").read_bytes() == wanted


def test_training_ends_when_held_back_chunks_no_longer_improve(monkeypatch: pytest.MonkeyPatch) -> None:
    class Some(Training):
        def __init__(self) -> None:
            self.knobs = [SimpleNamespace(change=torch.zeros(1))]
            self.student = self.divergence = SimpleNamespace(apply=lambda: None, moved=lambda: None, codes=[])
            self.order, self.losses, self.looks, self.best = np.arange(20), [], [], []

        def step(self, *arguments: object) -> None:
            self.losses.append(0.0)
            self.knobs[0].change += 1

    monkeypatch.setattr(polish, "LOOK_CHUNKS", 2)
    training, kept = Some(), SimpleNamespace(save=lambda training, soon=False: None)
    found = iter([0.9, 0.5, 0.7, 0.6, 0.1])
    for _ in range(2):  # gone on with, it stays ended
        polish._train(training, np.empty((0, 4)), None, kept, Silent(), lambda: next(found))  # type: ignore[arg-type]
        assert training.n_done == 8
        assert training.looks == [0.9, 0.5, 0.7, 0.6]
    training.back_to_best()
    assert training.knobs[0].change == 4


def test_a_full_disk_keeps_what_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of writing leaves the state for --resume; any other would come again, and its state goes."""
    kept = tmp_path / "out.gguf.quantmill-polish"
    errors = (GGUFError("no space"), True), (KeyboardInterrupt(), True), (QuantmillError("not finite"), False)
    for error, stays in errors:

        def fail(*arguments: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr("quantmill.jobs.polish._polished", fail)
        with pytest.raises(type(error), match="--resume" if stays else "not finite$"):
            run(job(tmp_path / "out.gguf", resume=True))
        assert kept.exists() == stays


def test_a_state_that_cannot_be_saved_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Training:
        n_done = 2

        def state(self) -> dict[str, torch.Tensor]:
            return {"moved": torch.ones(3)}

        def large_state(self) -> list[torch.Tensor]:
            return [torch.arange(5, dtype=torch.int16)]

    warnings: list[str] = []
    kept = Kept(tmp_path / "out.gguf", "one", False, warnings.append)
    kept.save(Training(), soon=True)
    saved = (kept.directory / "training.pt").read_bytes()

    def full(*arguments: object) -> None:
        raise GGUFError("no space")

    monkeypatch.setattr(PartialFile, "write_at", full)
    later = Training()
    later.n_done = 3
    kept.save(later, soon=True)
    assert warnings == ["what is finished could not be saved: no space"]
    assert [path.name for path in sorted(kept.directory.iterdir())] == [
        "run.json",
        "tensors-2.raw",
        "training.pt",
    ]
    assert (kept.directory / "tensors-2.raw").read_bytes() == np.arange(5, dtype="<i2").tobytes()
    assert (kept.directory / "training.pt").read_bytes() == saved


@pytest.mark.parametrize("between_steps", [True, False])
def test_an_interrupt_inside_a_step_saves_no_half_step(between_steps: bool) -> None:
    """A state that is half one step's and half the next one's would go on to other bytes."""

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    training = SimpleNamespace(
        n_done=0,
        order=[0],
        losses=[],
        looks=[],
        improves=True,
        step=interrupted,
        between_steps=between_steps,
    )
    saved: list[bool] = []
    kept = SimpleNamespace(save=lambda training, soon=False: saved.append(soon))
    with pytest.raises(KeyboardInterrupt):
        polish._train(training, np.empty((0, 4)), None, kept, Silent(), lambda: 0.0)  # type: ignore[arg-type]
    assert saved == [True] * between_steps
