"""An evaluation that is stopped keeps what is finished, and goes on to the numbers of one that was not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from quantmill import cli
from quantmill.jobs import saved
from quantmill.jobs.errors import JobError
from quantmill.jobs.evaluate import run
from quantmill.jobs.evaluate_request import Job, TaskJob
from quantmill.jobs.watcher import Silent, Unit
from quantmill.measure.record import Run
from quantmill.models import scoring
from quantmill.models.model import LoadedModel
from tests.support.measure_models import DATA, EXAMPLE, tiny

TEXT = EXAMPLE / "evaluation.txt"


class Stopping(Silent):
    """Counts stages and steps; interrupts after so many steps, as Ctrl-C does."""

    def __init__(self, after: int = 1 << 60) -> None:
        self.left = after
        self.stages: list[str] = []

    def began(self, what: str, total: int, unit: Unit) -> None:
        self.stages.append(what)

    def progressed(self, amount: int, what: str = "") -> None:
        self.left -= amount > 0
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two chunks at a time, so that little text makes several steps."""
    torch.set_num_threads(1)
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 192)


def same(a: Run, b: Run) -> bool:
    return replace(a, date="") == replace(b, date="")


def compared(output: Path) -> Job:
    return Job(
        models=(tiny("Q4_0"), tiny("Q8_0")),
        base=tiny("F16"),
        text=TEXT,
        n_ctx=96,
        chunks=6,
        tasks=(TaskJob("hellaswag", DATA / "hs.txt"),),
        n_tasks=2,
        threads=1,  # steps in turn, so that they can be counted
        output=output,
    )


@pytest.mark.parametrize("after", [1, 5, 10])
def test_a_stopped_comparison_goes_on(tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(compared(tmp_path / "whole.json"))
    job = compared(tmp_path / "run.json")
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(job, Stopping(after))
    kept = tmp_path / "run.json.partial.npz"
    assert not job.output.exists()  # type: ignore[union-attr]
    if after == 1:  # no batch was complete
        assert not kept.exists()
        assert str(stopped.value) == "nothing was finished"
    else:
        assert str(stopped.value) == f"what was finished is in {kept}: go on with --resume"
        with pytest.raises(JobError, match="go on with --resume, or remove it"):
            run(job)
    forwards: list[int] = []
    real = LoadedModel.logits
    monkeypatch.setattr(
        LoadedModel, "logits", lambda self, *a, **k: (forwards.append(1), real(self, *a, **k))[1]
    )
    assert same(run(replace(job, resume=True)), whole)
    n_resumed = len(forwards)
    forwards.clear()
    run(replace(job, output=tmp_path / "again.json"))
    assert n_resumed < len(forwards) or after == 1
    assert not kept.exists()
    assert json.loads((tmp_path / "run.json").read_text())["ranking"] == list(whole.ranking)


def test_finished_models_are_not_run_again(tmp_path: Path) -> None:
    job = Job(
        (tiny("F16"), tiny("Q4_0"), tiny("Q8_0")),
        text=TEXT,
        n_ctx=512,
        chunks=4,
        output=tmp_path / "run.json",
        threads=1,
    )
    whole = run(replace(job, output=tmp_path / "whole.json"))
    with pytest.raises(KeyboardInterrupt):
        run(job, Stopping(1))
    assert (tmp_path / "run.json.partial.npz").exists()
    watcher = Stopping()
    watcher.left = 1 << 40
    assert same(run(replace(job, resume=True), watcher), whole)


def test_tasks_are_kept_model_by_model(tmp_path: Path) -> None:
    job = Job(
        (tiny("F16"), tiny("Q4_0")), tasks=(TaskJob("hellaswag", DATA / "hs.txt"),), n_tasks=5,
        output=tmp_path / "run.json", threads=1,
    )  # fmt: skip
    whole = run(replace(job, output=tmp_path / "whole.json"))
    steps = Stopping()
    run(replace(job, output=tmp_path / "count.json"), steps)
    with pytest.raises(KeyboardInterrupt):
        run(job, Stopping(((1 << 60) - steps.left) // 2 + 0))
    watcher = Stopping()
    assert same(run(replace(job, resume=True), watcher), whole)
    assert watcher.stages == ["hellaswag tiny-Q4_0.gguf"]


def test_what_is_kept_belongs_to_one_run(tmp_path: Path) -> None:
    job = compared(tmp_path / "run.json")
    with pytest.raises(KeyboardInterrupt):
        run(job, Stopping(5))
    kept = tmp_path / "run.json.partial.npz"
    with pytest.raises(JobError, match="belongs to another run"):
        run(replace(job, resume=True, chunks=4))
    kept.write_bytes(kept.read_bytes()[:-100])
    with pytest.raises(JobError, match="is no saved evaluation; remove it"):
        run(replace(job, resume=True))


def test_long_steps_are_saved_while_they_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What SIGKILL finds on the disk: no step of ten seconds is lost."""
    monkeypatch.setattr(saved, "EVERY", 0.0)
    sizes: list[int] = []

    class Looking(Silent):
        def progressed(self, amount: int, what: str = "") -> None:
            path = tmp_path / "run.json.partial.npz"
            sizes.append(path.stat().st_size if path.exists() else 0)

    run(compared(tmp_path / "run.json"), Looking())
    assert sizes[0] == 0
    assert len(set(sizes)) >= 3


def test_saved_predictions_are_whole_after_going_on(tmp_path: Path) -> None:
    job = replace(compared(tmp_path / "run.json"), save_base=tmp_path / "base", tasks=())
    with pytest.raises(KeyboardInterrupt):
        run(job, Stopping(7))
    assert not (tmp_path / "base").exists()
    run(replace(job, resume=True))
    again = replace(job, output=tmp_path / "other.json", save_base=tmp_path / "other")
    run(again)
    assert (tmp_path / "base").read_bytes() == (tmp_path / "other").read_bytes()


def test_a_full_disk_does_not_end_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantmill.gguf_io import GGUFError

    def full(*_: object) -> None:
        raise GGUFError("the disk is full")

    monkeypatch.setattr(saved, "EVERY", 0.0)
    monkeypatch.setattr(saved, "write_whole", full)
    warnings: list[str] = []

    class Warned(Silent):
        def warn(self, line: str) -> None:
            warnings.append(line)

    run(replace(compared(tmp_path / "run.json"), tasks=()), Warned())
    assert warnings[0] == "what is finished could not be saved: the disk is full"
    assert (tmp_path / "run.json").exists()


def test_the_command_says_where_it_was_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantmill.commands import watching

    def stop(self: object, amount: int, what: str = "") -> None:
        raise KeyboardInterrupt

    command = [
        "evaluate",
        *map(str, (tiny("Q4_0"), tiny("Q8_0"))),
        "-f",
        str(TEXT),
        "--chunks",
        "4",
        "-c",
        "32",
    ]
    command += ["-t", "1", "-o", str(tmp_path / "run.json")]
    with monkeypatch.context() as patch:
        steps = iter([None, None])
        real = watching.Shown.progressed
        patch.setattr(
            watching.Shown, "progressed",
            lambda self, amount, what="": real(self, amount, what) if next(steps, 1) is None else stop(self, 1),
        )  # fmt: skip
        assert cli.main(command) == 130
    err = capsys.readouterr().err
    assert "interrupted; what was finished is in" in err
    assert "--resume" in err
    assert err.count("\n") == 1
    assert cli.main(command) == 1
    assert "--resume" in capsys.readouterr().err
    assert cli.main([*command, "--resume"]) == 0


def test_where_nothing_can_be_put_beside_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writable file in a directory that is not: what is finished is kept among the temporary files."""
    from quantmill.gguf_io import outputs, partial

    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    for module in (outputs, partial):
        monkeypatch.setattr(module, "completed_elsewhere", lambda final: final.name == "run.json")
    job = replace(compared(tmp_path / "run.json"), tasks=())
    job.output.write_text('{"format": 1, "models": []}')  # type: ignore[union-attr]
    number = job.output.stat().st_ino  # type: ignore[union-attr]
    with pytest.raises(KeyboardInterrupt, match="go on with --resume"):
        run(job, Stopping(5))
    kept = [path.name for path in temporary.iterdir() if "partial" in path.name]  # torch has files there too
    assert kept == [saved.saved_path(tmp_path / "run.json").name]
    run(replace(job, resume=True))
    assert not [path for path in temporary.iterdir() if "partial" in path.name]
    assert len(json.loads((tmp_path / "run.json").read_text())["models"]) == 2
    assert (tmp_path / "run.json").stat().st_ino == number
