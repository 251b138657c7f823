"""What of a squeeze can be known before the work: sizes, what cannot be, which files and texts it is made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quantmill.gguf_io import open_source
from quantmill.gguf_io.filesystem import digest
from quantmill.jobs import quantize
from quantmill.jobs.errors import JobError
from quantmill.jobs.squeeze_request import Candidate, Job, Wish
from quantmill.recipe import Recipe, RecipeError


class Plans:
    """Plans of a model's file types, each made once."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self._sizes: dict[str, int | None] = {}
        self._problems: dict[str, str] = {}  # why there is none

    def bytes_of_preset(self, file_type: str) -> int | None:
        """The size of a preset's file, None where it cannot be; importance, which some need, is taken for granted."""
        if file_type not in self._sizes:
            job = quantize.Job(str(self._model), Path("unwritten"), Recipe(file_type))
            try:
                plan = quantize.plan_job(job)
            except RecipeError:
                self._sizes[file_type] = None
            else:
                problems = [line for line in plan.problems if "importance" not in line]
                self._problems[file_type] = problems[0] if problems else ""
                self._sizes[file_type] = None if problems else plan.file_bytes
        return self._sizes[file_type]

    def require_possible(self, wishes: Sequence[Wish]) -> None:
        """Raises JobError, before the work, for a file type that this model cannot have."""
        for wish in wishes:
            if wish.file_type is not None and self.bytes_of_preset(wish.file_type) is None:
                why = self._problems.get(wish.file_type) or "there is no such file for this model"
                raise JobError(f"{wish.label}: {why}")

    def bytes_of(self, candidate: Candidate) -> int:
        """Exact for a file type, the ceiling for a size."""
        if candidate.target is not None:
            assert candidate.target.file_bytes is not None
            return candidate.target.file_bytes
        size = self.bytes_of_preset(candidate.label)
        assert size is not None  # what cannot be was refused
        return size


def model_files(model: Path) -> tuple[Path, ...]:
    """All that a conversion reads of a directory; all files of a split GGUF."""
    if model.is_dir():
        return tuple(sorted(path for path in model.iterdir() if path.is_file()))
    source = open_source(model)
    try:
        return tuple(source.paths)
    finally:
        source.close()


def require_other_text(job: Job, calibration: Sequence[str]) -> None:
    """Raises JobError where the text that decides is one that the files were made with."""
    for path, found in zip(job.calibration, calibration, strict=True):
        if found == digest([job.evaluation]):
            raise JobError(
                f"{job.evaluation}: is the calibration text {path} too; files are judged on a text that they were not "
                "made with: give another --evaluation"
            )
