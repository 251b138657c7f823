"""A speed measurement of several files as a record."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from quantmill.errors import counted
from quantmill.gguf_io.outputs import check_output
from quantmill.jobs.going_on import telling
from quantmill.jobs.machine import machine, now
from quantmill.jobs.saved import SAVED, Saved, identity_of, saved_path
from quantmill.jobs.watcher import Silent, Watcher
from quantmill.measure.errors import MeasureError
from quantmill.measure.record import ModelResult, Run, describe, kind_of_record, named, write_record
from quantmill.measure.speed import Speed, SpeedOptions, measure_speed, tool


@dataclass(frozen=True)
class Job:
    """output: the record, a table where its name ends in .csv; the files that are timed are kept beside it until it is
    there, and with `resume` not timed again. command, version: as the record shall name them."""

    models: tuple[Path, ...]
    options: SpeedOptions
    output: Path | None = None
    resume: bool = False
    force: bool = False
    command: str = ""
    version: str = ""

    def __post_init__(self) -> None:
        if not self.models:
            raise MeasureError("no model to time: give GGUF files")
        if self.resume and self.output is None:
            raise MeasureError(
                "--resume goes on beside the output of a run that was stopped: give its -o FILE"
            )


def run(job: Job, watcher: Watcher | None = None) -> Run:
    """Tokens per second of each file. A file that llama.cpp cannot run becomes a note; all failing is an error."""
    watcher = watcher or Silent()
    output = None
    if job.output is not None:
        inputs = [*job.models, *([job.options.bench] if job.options.bench else [])]
        output = check_output(job.output, kind_of_record(job.output), inputs, force=job.force)
        check_output(saved_path(output.final), SAVED, inputs)
    engine = tool(job.options)
    files = named([describe(path) for path in job.models])
    identity = identity_of(asdict(job.options), job.models)
    saved = Saved(saved_path(output.final) if output else None, identity, job.resume, watcher.warn)
    results, notes = [], []
    for warning in output.warnings if output else ():
        watcher.warn(warning)
    watcher.began("speed", len(job.models), "models")
    for i, (path, file) in enumerate(zip(job.models, files, strict=True)):
        try:
            with telling(lambda: saved.advice):
                results.append(ModelResult(file, speed=_timed(f"speed {i}", path, job.options, saved)))
        except MeasureError as error:
            notes.append(str(error))
        watcher.progressed(1, path.name)
    if not results:
        raise MeasureError(notes[0])
    record = Run(
        version=job.version,
        command=job.command,
        date=now(),
        machine=machine(),
        device=f"{engine}, {counted(job.options.threads, 'thread') if job.options.threads else 'default threads'}",
        models=tuple(results),
        notes=tuple(notes),
    )
    if output is not None:
        write_record(record, output)
    saved.remove()
    return record


def _timed(name: str, path: Path, options: SpeedOptions, saved: Saved) -> tuple[Speed, ...]:
    if name not in saved.facts:
        saved.facts[name] = [asdict(speed) for speed in measure_speed(path, options)]
        saved.keep()
    return tuple(Speed(**facts) for facts in saved.facts[name])
