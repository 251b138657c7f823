"""quantmill squeeze: from a model to a set of files with card and page, in one call."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from quantmill import __version__
from quantmill.commands import squeeze_options as options
from quantmill.commands.console import UsageError, command_line, parsing, remark
from quantmill.commands.options import (
    Chunks,
    Device,
    DryRun,
    Endpoint,
    Force,
    Json,
    Ray,
    Revision,
    Threads,
    WithRay,
)
from quantmill.commands.squeeze_run import run_and_show, show_plan, show_status

if TYPE_CHECKING:
    from quantmill.jobs.texts import TextSource

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_WIDTH_OF_WEIGHTS = re.compile(r"[-_.](f16|bf16|f32|fp16|fp32)$", re.IGNORECASE)


@app.command(cls=WithRay, context_settings={"help_option_names": ["-h", "--help"]})
def squeeze(
    model: options.Model = None,
    types: options.Types = None,
    size: options.Size = None,
    fit: options.Fit = None,
    ctx: options.Ctx = 8192,
    calibration: options.Calibration = None,
    evaluation: options.Evaluation = None,
    output: options.Output = None,
    chunks: Chunks = None,
    imatrix_chunks: options.ImatrixChunks = None,
    learn_chunks: options.LearnChunks = None,
    self_tokens: options.SelfTokens = 49152,
    compensate: options.Compensate = False,
    polish: options.Polish = False,
    plain: options.Plain = False,
    hours: options.Hours = 2.0,
    tasks: options.Tasks = None,
    n_tasks: options.NTasks = 750,
    rivals: options.Rivals = None,
    measure_rivals: options.MeasureRivals = False,
    no_speed: options.NoSpeed = False,
    keep_all: options.KeepAll = False,
    base_model: options.BaseModel = None,
    license_name: options.LicenseName = None,
    repository: options.Repository = None,
    status: options.Status = None,
    events: options.Events = False,
    endpoint: Endpoint = None,
    revision: Revision = None,
    device: Device = "auto",
    threads: Threads = None,
    ray: Ray = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make a set of files from a model: importance, candidates, their divergence, the best of each, card and page.

    Every stage is kept in DIR/.quantmill: after an interrupt, or with one more type or size, the same call goes on from
    what is there.
    """
    if status is not None:
        show_status(model, status, as_json)
        return
    if model is None:
        raise UsageError("give a MODEL to squeeze, or --status DIR")
    if plain and (compensate or polish):
        raise UsageError("--plain leaves out what --compensate and --polish ask for: give one or the other")
    if events and as_json:
        raise UsageError("--events ends with the result; leave out --json")
    from quantmill.gguf_io.outputs import check_directory
    from quantmill.jobs.hub import Hub, local_model
    from quantmill.jobs.squeeze_request import SPEED_TESTS, Job
    from quantmill.jobs.texts import CALIBRATION, EVALUATION, text_source
    from quantmill.recipe.sizes import parse_size

    with parsing():
        sizes = [parse_size(text, "--size") for text in size or ()]
        memory = parse_size(fit, "--fit") if fit else None
    learned: tuple[TextSource, ...] = tuple(map(text_source, calibration or [CALIBRATION]))
    decides = text_source(evaluation or EVALUATION)
    if output is not None or not Path(model).exists():
        check_directory(output or Path(Path(model).name))  # before anything is fetched
    hub = Hub(endpoint)
    source = local_model(model, revision, hub)
    name = _name_of(model, source)
    formula = None
    if memory is not None:
        fitting, formula = _size_that_fits(source, memory, ctx)
        sizes.append(fitting)
    free = (
        False if plain or not calibration else None
    )  # as far as the hours go, on a text that the user chose
    with parsing():
        job = Job(
            model=source,
            name=name,
            directory=output or Path(name),
            calibration=learned,
            evaluation=decides,
            types=tuple(types.split(",")) if types else (),
            sizes=tuple(sizes),
            chunks=chunks,
            imatrix_chunks=imatrix_chunks,
            learn_chunks=learn_chunks,
            self_tokens=self_tokens,
            device=device,
            threads=threads or None,
            ray=ray,
            compensate=compensate or free,
            polish=polish or free,
            hours=hours,
            tasks=tuple(tasks.split(",")) if tasks else (),
            n_tasks=n_tasks,
            rivals=tuple(rivals or ()),
            measure_rivals=measure_rivals,
            speed=() if no_speed else SPEED_TESTS,
            keep_all=keep_all,
            force=force,
            command=command_line(),
            version=__version__,
            base_model=base_model or (model if source.is_dir() and not Path(model).exists() else None),
            license_name=license_name,
            repository=repository,
            fit_note=formula,
            hub=hub,
        )
    if dry_run:
        show_plan(job, as_json)
    else:
        run_and_show(job, events, as_json)


def _name_of(given: str, source: Path) -> str:
    """The model's name for its files: of a directory or org/name the last part, of a file without the F16."""
    if source.is_dir():
        return (Path(given) if Path(given).exists() else Path(given.rstrip("/"))).resolve().name
    return _WIDTH_OF_WEIGHTS.sub("", source.stem)


def _size_that_fits(source: Path, memory: int, n_ctx: int) -> tuple[int, str]:
    from quantmill.gguf_io import open_source
    from quantmill.recipe.fit import fit

    opened = open_source(source)
    try:
        found = fit(memory, n_ctx, opened.metadata)
    finally:
        opened.close()
    remark(found.formula)
    return found.file, found.formula
