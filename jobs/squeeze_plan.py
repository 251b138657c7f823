"""What of a squeeze can be known before the work: sizes, what cannot be, room, which files it is made from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantmill.gguf_io import open_source
from quantmill.jobs import quantize
from quantmill.jobs.errors import JobError
from quantmill.jobs.squeeze_choice import candidates_of
from quantmill.jobs.squeeze_costs import (
    Costs,
    Learning,
    calibration_tokens,
    costs_of,
    evaluation_tokens,
    learning_of,
)
from quantmill.jobs.squeeze_request import KEYS, Candidate, Job, Planned, Wish
from quantmill.measure.logits_file import TOP_K
from quantmill.recipe import Recipe, RecipeError

_ENTRY_BYTES = 6  # of a prediction that is kept: token and probability
_IMATRIX_SHARE = 0.002  # of the model's bytes in 16 bits


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
                # Room is looked at for all files together.
                problems = [
                    line for line in plan.problems if "importance" not in line and "are free" not in line
                ]
                self._problems[file_type] = problems[0] if problems else ""
                self._sizes[file_type] = None if problems else plan.file_bytes
        return self._sizes[file_type]

    def require_possible(self, wishes: Sequence[Wish]) -> None:
        """Raises JobError, before the work, for a file type that this model cannot have."""
        for wish in wishes:
            if wish.file_type is not None and self.bytes_of_preset(wish.file_type) is None:
                why = self._problems.get(wish.file_type) or "there is no such file for this model"
                raise JobError(f"{wish.label}: {why}")

    def candidates(self, job: Job, wishes: Sequence[Wish]) -> Mapping[Wish, tuple[Candidate, ...]]:
        """Raises JobError for a size that no file type makes, naming the range."""
        reserved = KEYS if job.learns else 0
        return {wish: candidates_of(wish, self.bytes_of_preset, reserved) for wish in wishes}

    def bytes_of(self, candidate: Candidate) -> int:
        """Exact for a file type, the ceiling for a size."""
        if candidate.target is not None:
            assert candidate.target.file_bytes is not None
            return candidate.target.file_bytes
        assert candidate.file_type is not None
        size = self.bytes_of_preset(candidate.file_type)
        assert size is not None  # what cannot be was refused
        return size


@dataclass(frozen=True)
class Outlook:
    """A squeeze before the work. candidates: files that will be made, without what is learned; disk: bytes that are
    needed at most at once, with the stages that are kept. stages: with seconds, about. left_out: see Learning.
    problems: what would stop the run."""

    candidates: tuple[Planned, ...]
    disk: int
    stages: tuple[tuple[str, float], ...]
    left_out: tuple[str, ...]
    problems: tuple[str, ...] = ()


def outlook(
    job: Job, plans: Plans, candidates: Mapping[Wish, tuple[Candidate, ...]], places: Mapping[Wish, Path]
) -> Outlook:
    costs = costs_of(job.model, None)
    learning = learning_of(job, list(candidates), costs)
    planned = tuple(
        Planned(one, places[wish], plans.bytes_of(one)) for wish, some in candidates.items() for one in some
    )
    return Outlook(
        planned,
        disk_bytes(job, plans, candidates, costs),
        _stages(job, candidates, learning, costs),
        learning.left_out,
    )


def _stages(
    job: Job, candidates: Mapping[Wish, tuple[Candidate, ...]], learning: Learning, costs: Costs
) -> tuple[tuple[str, float], ...]:
    evaluated = costs.tokens(evaluation_tokens(job))
    stages = [("the original", evaluated), ("importance", costs.tokens(calibration_tokens(job)))]
    sensitivities = costs.sensitivities()
    for wish, some in candidates.items():
        for one in some:
            if one.is_found:
                stages.append((f"types for {wish.label}", sensitivities))
                sensitivities = 0.1 * sensitivities  # what was measured is not measured again
            stages.append((one.label, costs.quantize() + evaluated))
        for what, seconds, name in (
            ("compensate", costs.compensate(job.learn_chunks), "compensated"),
            ("polish", costs.polish(job.learn_chunks), "polished"),
        ):
            if (wish.label, what) in learning.steps:
                stages.append((f"{wish.label}, {name}", seconds + evaluated))
    return tuple(stages)


def disk_bytes(job: Job, plans: Plans, candidates: Mapping[Wish, tuple[Candidate, ...]], costs: Costs) -> int:
    """What is on the disk at most at once: files that stay, all candidates of one wish, predictions, importance."""
    learned = (job.compensate is not False) + (job.polish is not False)
    by_wish = []
    for wish, some in candidates.items():
        sizes = [plans.bytes_of(one) for one in some]
        by_wish.append(sum(sizes) + learned * (wish.ceiling or max(sizes)))
    stay = sum(max(plans.bytes_of(one) for one in some) for some in candidates.values())
    files = sum(by_wish) if job.keep_all or job.ray is not None else stay + max(by_wish)
    predictions = evaluation_tokens(job) // 2 * TOP_K * _ENTRY_BYTES
    return files + predictions + int(2 * costs.n_weights * _IMATRIX_SHARE)


def require_room(directory: Path, n_bytes: int, there: int) -> None:
    """there: bytes of it that are on the disk already. Raises JobError."""
    place = directory
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if n_bytes - there > free:
        raise JobError(
            f"{directory}: needs about {n_bytes - there} bytes, {free} are free on its disk; free space, choose "
            "another -o DIR, or ask for fewer files"
        )


def model_files(model: Path) -> tuple[Path, ...]:
    """All that a conversion reads of a directory; all files of a split GGUF."""
    if model.is_dir():
        return tuple(sorted(path for path in model.iterdir() if path.is_file()))
    source = open_source(model)
    try:
        return tuple(source.paths)
    finally:
        source.close()
