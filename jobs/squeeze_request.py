"""What a squeeze is asked for, what it may make, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantmill.jobs.errors import JobError
from quantmill.jobs.evaluate_request import Job as EvaluateJob
from quantmill.jobs.hub import Hub
from quantmill.jobs.quantize_request import Job as QuantizeJob
from quantmill.jobs.task_sets import known_tasks
from quantmill.jobs.texts import SelfText, TextSource
from quantmill.measure.record import ModelResult
from quantmill.measure.speed import SpeedTest
from quantmill.recipe.budget import Target
from quantmill.recipe.presets import get_file_type

MEMORY = ".quantmill"  # the folder of a squeeze's finished stages, in its output
SPEED_TESTS = (SpeedTest(512, 0), SpeedTest(0, 128))
# What compensation and polish may add to a file: keys that say how it was made.
KEYS = 4096


@dataclass(frozen=True)
class Job:
    """model: a GGUF or a Hugging Face directory; name: as the files shall be called; directory: for all results.

    types: file types, sizes: ceilings in bytes; each of them becomes one file. calibration: texts for importance and
    what is learned from a text; evaluation: the text that decides, which must be another. chunks: of 512 tokens, of
    the evaluation, None: all. imatrix_chunks: of the calibration; learn_chunks: of it for compensation and polish;
    self_tokens: that the model writes where it is to write the text.
    compensate, polish: try codes that undo each other's errors, and trained scales; None: as far as the estimate fits
    `hours`. keep_all: also files that lost. tasks: names of task_sets, n_tasks of each. rivals: repositories whose
    files of the same types the card compares sizes with; measure_rivals: divergence too. speed: what llama.cpp is
    timed with, () for nothing. ray: the cluster (jobs.cluster) whose hosts make candidates side by side and share
    importance, evaluation and compensation. base_model, license_name, repository: for the card.
    """

    model: Path
    name: str
    directory: Path
    calibration: tuple[TextSource, ...]
    evaluation: TextSource
    types: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    chunks: int | None = None
    imatrix_chunks: int | None = None
    learn_chunks: int | None = None
    self_tokens: int = 49152
    device: str = "auto"
    threads: int | None = None
    ray: str | None = None
    compensate: bool | None = False
    polish: bool | None = False
    hours: float = 2.0
    tasks: tuple[str, ...] = ()
    n_tasks: int = 750
    rivals: tuple[str, ...] = ()
    measure_rivals: bool = False
    speed: tuple[SpeedTest, ...] = ()
    keep_all: bool = False
    force: bool = False
    command: str = ""
    version: str = ""
    base_model: str | None = None
    license_name: str | None = None
    repository: str | None = None
    fit_note: str | None = None
    hub: Hub = field(default_factory=Hub)

    def __post_init__(self) -> None:
        if not self.types and not self.sizes:
            raise JobError("nothing to make: give --types, --size or --fit")
        if not self.calibration:
            raise JobError("a squeeze needs a calibration text (--calibration FILE)")
        if isinstance(self.evaluation, SelfText):
            raise JobError("--evaluation self: files are judged on a text of people; give one, or a data set")
        numbers = {
            "--chunks": self.chunks,
            "--imatrix-chunks": self.imatrix_chunks,
            "--learn-chunks": self.learn_chunks,
            "--n-tasks": self.n_tasks,
            "--self-tokens": self.self_tokens,
        }
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise JobError(f"{name} {value}: must be at least 1")
        if self.hours < 0:
            raise JobError(f"--hours {self.hours:g}: cannot be negative")
        if self.measure_rivals and not self.rivals:
            raise JobError("--measure-rivals measures the files of --rivals org/name; give some")
        known_tasks(self.tasks)
        object.__setattr__(self, "types", tuple(dict.fromkeys(map(get_file_type, self.types))))
        object.__setattr__(self, "sizes", tuple(dict.fromkeys(self.sizes)))

    @property
    def learns(self) -> bool:
        """Whether candidates may be made that carry keys of what they learned."""
        return self.compensate is not False or self.polish is not False


@dataclass(frozen=True)
class Wish:
    """One file that was asked for: a file type, or the best of a size. label: in its name and in tables."""

    label: str
    file_type: str | None = None
    ceiling: int | None = None


@dataclass(frozen=True)
class Candidate:
    """One way to meet a wish: a file type as it is, or types found for a size; or one of these, improved."""

    wish: Wish
    label: str
    file_type: str | None = None
    target: Target | None = None

    @property
    def is_found(self) -> bool:
        """Its types were found for the size."""
        return self.target is not None


@dataclass(frozen=True)
class Planned:
    """A candidate that would be made, the place of the file that it may become, its size or ceiling in bytes."""

    candidate: Candidate
    path: Path
    n_bytes: int


@dataclass(frozen=True)
class Asked:
    """A file to make (None: it is there), and the evaluation of it; what decides each of the two."""

    label: str
    made_from: Mapping[str, Any]
    evaluated_from: Mapping[str, Any]
    file: QuantizeJob | None
    evaluation: EvaluateJob


@dataclass(frozen=True)
class Measured:
    """A candidate with what the evaluation said of it. key: of its file among the finished stages."""

    candidate: Candidate
    key: str
    n_bytes: int
    result: ModelResult

    @property
    def kld(self) -> float:
        assert self.result.divergence is not None  # every candidate is compared with the base
        return self.result.divergence.kld.value


@dataclass(frozen=True)
class Made:
    """A wish and the file that meets it best; `instead_of`: the other candidates, by label, with their divergence.

    reason: why it was chosen, as the paired tests say.
    """

    wish: Wish
    chosen: Measured
    path: Path
    instead_of: Mapping[str, float]
    reason: str = ""


@dataclass(frozen=True)
class Result:
    """made: in the order of the wishes. pages: the page and the card. found, done: stages that were there, and not.

    left_out: what was not tried, and why.
    """

    made: tuple[Made, ...]
    pages: tuple[Path, ...]
    found: int
    done: int
    seconds: float
    left_out: tuple[str, ...] = ()


def wishes_of(job: Job) -> tuple[Wish, ...]:
    """The files that were asked for, types first. Raises JobError where two would have one name."""
    wishes = [Wish(file_type, file_type=file_type) for file_type in job.types]
    wishes += [Wish(size_label(size), ceiling=size) for size in job.sizes]
    labels = [wish.label for wish in wishes]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise JobError(f"two of the sizes are called {twice}; give sizes that differ by more")
    return tuple(wishes)


def size_label(size: int) -> str:
    """`4.6GiB`, `700MiB`: short, for a name; two digits behind the point at most."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if size >= factor:
            return f"{size / factor:.2f}".rstrip("0").rstrip(".") + unit
    return f"{size}B"
