"""quantmill squeeze: from a model to a set of files with card and page, in one call."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantmill import __version__
from quantmill.commands.console import UsageError, command_line, parsing, remark
from quantmill.commands.options import (
    Chunks,
    Device,
    DryRun,
    Endpoint,
    Force,
    Json,
    Revision,
    Threads,
    at_least,
)
from quantmill.commands.squeeze_run import run_and_show, show_plan, show_status

if TYPE_CHECKING:
    from quantmill.jobs.texts import TextSource

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_WIDTH_OF_WEIGHTS = re.compile(r"[-_.](f16|bf16|f32|fp16|fp32)$", re.IGNORECASE)


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def squeeze(
    model: Annotated[
        str | None, typer.Argument(help="A GGUF file, a Hugging Face directory or org/name on the hub.")
    ] = None,
    types: Annotated[
        str | None, typer.Option("--types", metavar="TYPE,TYPE", help="File types to make, one file each.")
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            "--size", metavar="SIZE", help="The best file of at most this size (4.6GiB); several times."
        ),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option("--fit", metavar="MEMORY", help="The best file that a card of 16GB runs with --ctx."),
    ] = None,
    ctx: Annotated[
        int,
        typer.Option(
            "--ctx", "-c", callback=at_least(1), help="Context in tokens that --fit leaves room for."
        ),
    ] = 8192,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            "--calibration",
            metavar="TEXT",
            help="Text to learn from, several times: a file, a data set of the hub as org/name:file#column (parquet, "
            "JSONL, text), or self: what the model itself writes. [default: eaddario/imatrix-calibration:"
            "combined_en_small.parquet]",
        ),
    ] = None,
    evaluation: Annotated[
        str | None,
        typer.Option(
            "--evaluation",
            metavar="TEXT",
            help="Another text, which decides. [default: Salesforce/wikitext:wikitext-2-raw-v1/"
            "test-00000-of-00001.parquet]",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Folder of all results. [default: the model's name]"
        ),
    ] = None,
    chunks: Chunks = None,
    imatrix_chunks: Annotated[
        int | None,
        typer.Option(
            "--imatrix-chunks", callback=at_least(1), help="Chunks of the calibration for importance."
        ),
    ] = None,
    learn_chunks: Annotated[
        int | None,
        typer.Option(
            "--learn-chunks", callback=at_least(4), help="Chunks of the calibration for codes and polish."
        ),
    ] = None,
    self_tokens: Annotated[
        int,
        typer.Option(
            "--self-tokens", callback=at_least(1024), help="Tokens that --calibration self has written."
        ),
    ] = 49152,
    compensate: Annotated[
        bool,
        typer.Option("--compensate", help="Try codes that undo each other's errors, however long it takes."),
    ] = False,
    polish: Annotated[
        bool,
        typer.Option("--polish", help="Train scales and norms on the calibration, however long it takes."),
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Neither of the two; else both, where --calibration names a text.")
    ] = False,
    hours: Annotated[
        float, typer.Option("--hours", help="What the two may take; what does not fit is left out, and said.")
    ] = 2.0,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            metavar="NAME,NAME",
            help="Score hellaswag, winogrande, arc, mmlu, truthfulqa with llama.cpp's files, from the hub.",
        ),
    ] = None,
    n_tasks: Annotated[
        int, typer.Option("--n-tasks", callback=at_least(1), help="So many of each, drawn as llama.cpp does.")
    ] = 750,
    rivals: Annotated[
        list[str] | None,
        typer.Option(
            "--rivals",
            metavar="ORG/NAME",
            help="A repository whose files of the same types the card compares sizes with; several times.",
        ),
    ] = None,
    measure_rivals: Annotated[
        bool, typer.Option("--measure-rivals", help="Fetch those files and measure them too.")
    ] = False,
    no_speed: Annotated[
        bool, typer.Option("--no-speed", help="Do not time the files with llama.cpp.")
    ] = False,
    keep_all: Annotated[
        bool, typer.Option("--keep-all", help="Keep files that lost, among the stages.")
    ] = False,
    base_model: Annotated[
        str | None,
        typer.Option(help="Repository of the original model, for the card. [default: as its card says]"),
    ] = None,
    license_name: Annotated[
        str | None, typer.Option("--license", help="Licence, for the card. [default: as its card says]")
    ] = None,
    repository: Annotated[
        str | None, typer.Option("--repo", help="Where the files will lie on the hub, for the card.")
    ] = None,
    status: Annotated[
        Path | None, typer.Option("--status", metavar="DIR", help="Say where the squeeze in DIR stands.")
    ] = None,
    events: Annotated[
        bool, typer.Option("--events", help="Stream what happens on stdout, one JSON object a line.")
    ] = False,
    endpoint: Endpoint = None,
    revision: Revision = None,
    device: Device = "auto",
    threads: Threads = None,
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
    from quantmill.jobs.hub import Hub, local_model
    from quantmill.jobs.squeeze_request import SPEED_TESTS, Job
    from quantmill.jobs.texts import CALIBRATION, EVALUATION, text_source
    from quantmill.recipe.sizes import parse_size

    with parsing():
        sizes = [parse_size(text, "--size") for text in size or ()]
        memory = parse_size(fit, "--fit") if fit else None
    learned: tuple[TextSource, ...] = tuple(map(text_source, calibration or [CALIBRATION]))
    decides = text_source(evaluation or EVALUATION)
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
