"""What a squeeze is asked for, what it may make, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quantmill.jobs.errors import JobError
from quantmill.measure.record import ModelResult
from quantmill.recipe.budget import Target
from quantmill.recipe.presets import get_file_type

MEMORY = ".quantmill"  # the folder of a squeeze's finished stages, in its output


@dataclass(frozen=True)
class Job:
    """model: a GGUF or a Hugging Face directory; name: as the files shall be called; directory: for all results.

    types: file types, sizes: ceilings in bytes; each of them becomes one file. calibration: texts for importance and
    what is learned from a text; evaluation: the text that decides, which must be another. chunks: of 512 tokens, of
    the evaluation, None: all. imatrix_chunks: of the calibration.
    polish: train the scales of the best candidate of each wish on the calibration too, and keep what is better.
    keep_all: also files that lost. base_model, license_name, repository: for the card.
    """

    model: Path
    name: str
    directory: Path
    calibration: tuple[Path, ...]
    evaluation: Path
    types: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    chunks: int | None = None
    imatrix_chunks: int | None = None
    device: str = "auto"
    threads: int | None = None
    polish: bool = False
    keep_all: bool = False
    force: bool = False
    command: str = ""
    version: str = ""
    base_model: str | None = None
    license_name: str | None = None
    repository: str | None = None

    def __post_init__(self) -> None:
        if not self.types and not self.sizes:
            raise JobError("nothing to make: give --types, --size or --fit")
        if not self.calibration:
            raise JobError("a squeeze needs a calibration text (--calibration FILE)")
        for name, value in (("--chunks", self.chunks), ("--imatrix-chunks", self.imatrix_chunks)):
            if value is not None and value < 1:
                raise JobError(f"{name} {value}: must be at least 1")
        object.__setattr__(self, "types", tuple(dict.fromkeys(map(get_file_type, self.types))))
        object.__setattr__(self, "sizes", tuple(dict.fromkeys(self.sizes)))


@dataclass(frozen=True)
class Wish:
    """One file that was asked for: a file type, or the best of a size. label: in its name and in tables."""

    label: str
    file_type: str | None = None
    ceiling: int | None = None


@dataclass(frozen=True)
class Candidate:
    """One way to meet a wish: a file type as it is, or types found for a size."""

    wish: Wish
    label: str
    file_type: str | None = None
    target: Target | None = None


@dataclass(frozen=True)
class Planned:
    """A candidate that would be made, the place of the file that it may become, its size or ceiling in bytes."""

    candidate: Candidate
    path: Path
    n_bytes: int


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
    """A wish and the file that meets it best; `instead_of`: the other candidates, by label, with their divergence."""

    wish: Wish
    chosen: Measured
    path: Path
    instead_of: Mapping[str, float]


@dataclass(frozen=True)
class Result:
    """made: in the order of the wishes. pages: the page and the card. found, done: stages that were there, and not."""

    made: tuple[Made, ...]
    pages: tuple[Path, ...]
    found: int
    done: int
    seconds: float


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
