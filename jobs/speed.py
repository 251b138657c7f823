"""A speed measurement of several files as a record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantmill.gguf_io.outputs import check_output
from quantmill.jobs.machine import machine, now
from quantmill.jobs.watcher import Silent, Watcher
from quantmill.measure.errors import MeasureError
from quantmill.measure.record import ModelResult, Run, describe, kind_of_record, named, write_record
from quantmill.measure.speed import SpeedOptions, measure_speed, tool


@dataclass(frozen=True)
class Job:
    """output: the record, a table where its name ends in .csv. command, version: as the record shall name them."""

    models: tuple[Path, ...]
    options: SpeedOptions
    output: Path | None = None
    force: bool = False
    command: str = ""
    version: str = ""

    def __post_init__(self) -> None:
        if not self.models:
            raise MeasureError("no model to time: give GGUF files")


def run(job: Job, watcher: Watcher | None = None) -> Run:
    """Tokens per second of each file. A file that llama.cpp cannot run becomes a note; all failing is an error."""
    watcher = watcher or Silent()
    output = None
    if job.output is not None:
        inputs = [*job.models, *([job.options.bench] if job.options.bench else [])]
        output = check_output(job.output, kind_of_record(job.output), inputs, force=job.force)
    engine = tool(job.options)
    files = named([describe(path) for path in job.models])
    results, notes = [], []
    for note in output.notes if output else ():
        watcher.note(note)
    watcher.began("speed", len(job.models), "models")
    for path, file in zip(job.models, files, strict=True):
        try:
            results.append(ModelResult(file, speed=measure_speed(path, job.options)))
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
        device=f"{engine}, {job.options.threads or 'default'} threads",
        models=tuple(results),
        notes=tuple(notes),
    )
    if output is not None:
        write_record(record, output)
    return record
