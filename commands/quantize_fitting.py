"""What `quantmill quantize` is to do with a calibration text beside measuring: compensate codes, train scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from quantmill.commands.console import CommandError, UsageError, parsing
from quantmill.commands.quantize_run import Further, Make, quantize_and_show

if TYPE_CHECKING:
    from quantmill.jobs.quantize import Job
    from quantmill.recipe import Plan


@dataclass(frozen=True)
class Fitting:
    """The options as they were given; texts: of --calibration."""

    texts: tuple[str, ...]
    compensate: bool
    polish: bool
    effort: str | None
    chunks: int | None
    alpha: float | None
    damping: float | None
    resume: bool
    keep_norms: bool

    def check(self, has_target: bool, prunes: bool) -> None:
        """Raises UsageError for a text that nothing wants, and for a wish without its text."""
        for option, is_there in (("--compensate", self.compensate), ("--polish", self.polish)):
            if is_there and not self.texts:
                raise UsageError(f"{option} needs a text: --calibration FILE")
        if self.polish and prunes:
            raise UsageError(
                "--polish wants the original of what it trains, which a pruned model has not; prune into a file with "
                "COPY first, and quantize that one"
            )
        if self.texts and not (self.compensate or has_target or self.polish or prunes):
            raise UsageError(
                "--calibration only names a text; add --compensate, --polish, --target-size, --prune-layers or "
                "--prune-experts"
            )
        if has_target and len(self.texts) > 1:
            raise UsageError("--target-size measures on one text; give --calibration once")
        if not self.compensate:
            self._refuse_without_compensate()

    def _refuse_without_compensate(self) -> None:
        """Options of --compensate would do nothing without it."""
        options = {
            "--effort": self.effort,
            "--chunks": self.chunks,
            "--alpha": self.alpha,
            "--damping": self.damping,
        }
        for name, value in options.items():
            if value is not None:
                raise UsageError(f"{name} belongs to --compensate; add it, or leave {name} out")
        if self.keep_norms:
            raise UsageError("--keep-norms belongs to --compensate; add it, or leave --keep-norms out")
        if self.resume and not self.polish:
            raise UsageError("--resume goes on with a stopped --compensate or --polish; add one of them")

    def refuse_several(self, file_types: Sequence[str]) -> None:
        """Raises UsageError for several types where each would be fitted to a text for itself."""
        for option, is_there in (("--compensate", self.compensate), ("--polish", self.polish)):
            if is_there and len(file_types) > 1:
                raise UsageError(
                    f"{option} takes one type, for the text is walked for each; got {', '.join(file_types)}"
                )

    def files(self) -> list[str]:
        """Names of the texts, without their weights."""
        if not self.texts:
            return []
        from quantmill.imatrix.text import text_argument

        with parsing():
            return [str(text_argument(text).path) for text in self.texts]

    def ways(self, job: Job, as_json: bool) -> tuple[Make, Callable[[Job], Plan]]:
        """How a job is done and shown, and how it is planned."""
        from quantmill.jobs.quantize_plan import plan_job

        # a compensation polishes by itself, on chunks that its codes have not seen
        further = self._polishing(job) if self.polish and not self.compensate else None
        if self.polish:
            self._require_scales(job)
            self._require_trainable(job)
        make: Make = quantize_and_show
        planned: Callable[[Job], Plan] = plan_job
        if self.compensate:
            from quantmill.commands.compensate import ways

            make, planned = ways(
                self.texts,
                self.effort,
                self.chunks,
                self.alpha,
                self.damping,
                self.resume,
                self.polish,
                self.keep_norms,
            )
        return partial(make, as_json=as_json, further=further), planned

    def _require_scales(self, job: Job) -> None:
        """Before the work: a float file has all that its original has. Raises CommandError."""
        from quantmill.qkernels.types import TYPES
        from quantmill.recipe import COPY, FILE_TYPES

        recipe = job.recipe
        name = recipe.file_type
        others = recipe.rules or recipe.token_embedding_type or recipe.output_tensor_type
        if not others and (name == COPY or TYPES[FILE_TYPES[name].base].family == "plain"):
            raise CommandError(
                f"--polish: {name} keeps what the original predicts, there is nothing to learn; leave --polish out, or "
                "choose a quantized type"
            )

    def _require_trainable(self, job: Job) -> None:
        """Before the file is made. Raises ModelError, JobError."""
        from contextlib import closing

        from quantmill.gguf_io import open_source
        from quantmill.jobs.polish_checks import check_trainable

        with closing(open_source(job.source)) as source:
            check_trainable(Path(job.source), source)

    def _polishing(self, job: Job) -> Further:
        """The step that trains the file that was just made."""
        from quantmill.commands.polish import polish_made

        texts = list(self.texts)
        return lambda paths: polish_made(paths, Path(job.source), texts, job.threads, job.device, self.resume)
