"""What an evaluation is asked for, and which wishes contradict one another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantmill.measure.errors import MeasureError
from quantmill.measure.logits_file import TOP_K
from quantmill.measure.task_files import Kind


@dataclass(frozen=True)
class TaskJob:
    kind: Kind
    path: Path

    @property
    def name(self) -> str:
        """Several multiple-choice files tell themselves apart by their names."""
        return self.path.stem if self.kind == "multiple-choice" else self.kind


@dataclass(frozen=True)
class Job:
    """What `quantmill evaluate` was asked for. n_ctx None: 512, or what the base file was made with.

    base: a model, or base_file: its saved predictions. save_logits, save_base: write the base's predictions in
    llama.cpp's or the compact format with top_k entries a position. n_tasks None: all tasks of a file.
    stream: read the models layer by layer, all of the text through each before the next is read.
    ray: the cluster whose workers run the batches of the text (jobs.cluster), None: this process.
    output: the record, a table where its name ends in .csv; what is finished is kept beside it until it is there, and
    with `resume` not run again. dtype "auto": float32, with short products where the processor has them
    (models.arithmetic.automatic_dtype); differences between models are smaller than what a shorter type rounds away.
    command, version: as the record shall name them.
    """

    models: tuple[Path, ...]
    base: Path | None = None
    base_file: Path | None = None
    text: Path | None = None
    n_ctx: int | None = None
    chunks: int | None = None
    parse_special: bool = False
    save_logits: Path | None = None
    save_base: Path | None = None
    top_k: int = TOP_K
    tasks: tuple[TaskJob, ...] = ()
    n_tasks: int | None = None
    lm_eval: tuple[str, ...] = ()
    lm_eval_limit: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    tokenizer: Path | None = None
    stream: bool = False
    ray: str | None = None
    output: Path | None = None
    resume: bool = False
    force: bool = False
    command: str = ""
    version: str = ""

    def __post_init__(self) -> None:
        if self.base is not None and self.base_file is not None:
            raise MeasureError(
                "give the base as a model (--base) or as saved predictions (--base-file), not both"
            )
        if not self.models and self.base is None:
            raise MeasureError("no model to evaluate: give GGUF files, or --base with what to save")
        if self.text is None and self.base_file is None and not (self.tasks or self.lm_eval):
            raise MeasureError("nothing to measure: give --text, --base-file or tasks")
        if (self.save_logits or self.save_base) and (self.base is None or self.text is None):
            raise MeasureError("saving predictions needs --base and --text")
        if self.resume and self.output is None:
            raise MeasureError(
                "--resume goes on beside the output of a run that was stopped: give its -o FILE"
            )
        numbers = {
            "--ctx": self.n_ctx,
            "--chunks": self.chunks,
            "--top-k": self.top_k,
            "--threads": self.threads,
        }
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise MeasureError(f"{name} {value}: must be at least 1")
        if self.ray and (self.stream or self.tasks or self.lm_eval or self.save_logits or self.save_base):
            raise MeasureError(
                "--ray spreads the chunks of a text; leave out --stream, tasks, --save-logits and --save-base"
            )
        if self.stream and (self.tasks or self.lm_eval):
            raise MeasureError(
                "--stream reads the model once for a whole text; for tasks it would read it again and again: leave "
                "them out, or --stream"
            )
        if self.base_file is not None and self.text is not None:
            raise MeasureError("--base-file holds its own tokens; leave out --text")
