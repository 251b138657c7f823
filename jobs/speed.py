"""A speed measurement of several files as a record."""

from __future__ import annotations

import datetime
from pathlib import Path

from quantmill.jobs.evaluate import Bar, machine, no_bar
from quantmill.measure.errors import MeasureError
from quantmill.measure.record import ModelResult, Run, describe, named
from quantmill.measure.speed import SpeedOptions, measure_speed, tool


def speed_run(
    models: tuple[Path, ...], options: SpeedOptions, command: str, version: str, bar: Bar = no_bar
) -> Run:
    """Tokens per second of each file. A file that llama.cpp cannot run becomes a note; all failing is an error."""
    if not models:
        raise MeasureError("no model to time: give GGUF files")
    engine = tool(options)
    files = named([describe(path) for path in models])
    results, notes = [], []
    with bar("speed", len(models)) as advance:
        for path, file in zip(models, files, strict=True):
            try:
                results.append(ModelResult(file, speed=measure_speed(path, options)))
            except MeasureError as error:
                notes.append(str(error))
            advance(1)
    if not results:
        raise MeasureError(notes[0])
    threads = options.threads or "default"
    return Run(
        version=version,
        command=command,
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        machine=machine("cpu"),
        device=f"{engine}, {threads} threads",
        models=tuple(results),
        notes=tuple(notes),
    )
