"""quantmill squeeze: from a model to a set of files with card and page, in one call."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantmill import __version__
from quantmill.commands.console import UsageError, command_line, parsing, remark, show, size_text, table_text
from quantmill.commands.options import Chunks, Device, DryRun, Force, Json, Revision, Threads, at_least
from quantmill.commands.watching import Shown
from quantmill.plain_json import json_text

if TYPE_CHECKING:
    from quantmill.jobs.squeeze_request import Planned, Result

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_WIDTH_OF_WEIGHTS = re.compile(r"[-_.](f16|bf16|f32|fp16|fp32)$", re.IGNORECASE)


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def squeeze(
    model: Annotated[
        str, typer.Argument(help="A GGUF file, a Hugging Face directory or org/name on the hub.")
    ],
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
        list[Path] | None,
        typer.Option("--calibration", metavar="TEXT", help="Text to learn from; several times. Required."),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option("--evaluation", metavar="TEXT", help="Another text, which decides. Required."),
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
    polish: Annotated[
        bool,
        typer.Option("--polish", help="Also train scales and norms on the calibration; kept where better."),
    ] = False,
    keep_all: Annotated[
        bool, typer.Option("--keep-all", help="Keep files that lost, among the stages.")
    ] = False,
    base_model: Annotated[
        str | None, typer.Option(help="Repository of the original model, for the card.")
    ] = None,
    license_name: Annotated[str | None, typer.Option("--license", help="Licence, for the card.")] = None,
    repository: Annotated[
        str | None, typer.Option("--repo", help="Where the files will lie on the hub, for the card.")
    ] = None,
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
    from quantmill.jobs.hub import local_model
    from quantmill.jobs.squeeze import plan_job, run
    from quantmill.jobs.squeeze_request import Job
    from quantmill.recipe.sizes import parse_size

    if not calibration or evaluation is None:
        raise UsageError("give --calibration TEXT to learn from and another --evaluation TEXT that decides")
    with parsing():
        sizes = [parse_size(text, "--size") for text in size or ()]
        memory = parse_size(fit, "--fit") if fit else None
    source = local_model(model, revision)
    name = _name_of(model, source)
    if memory is not None:
        sizes.append(_size_that_fits(source, memory, ctx))
    with parsing():
        job = Job(
            model=source,
            name=name,
            directory=output or Path(name),
            calibration=tuple(calibration),
            evaluation=evaluation,
            types=tuple(types.split(",")) if types else (),
            sizes=tuple(sizes),
            chunks=chunks,
            imatrix_chunks=imatrix_chunks,
            device=device,
            threads=threads or None,
            polish=polish,
            keep_all=keep_all,
            force=force,
            command=command_line(),
            version=__version__,
            base_model=base_model,
            license_name=license_name,
            repository=repository,
        )
    if dry_run:
        planned = plan_job(job)
        show(json_text(_plan_object(planned)) if as_json else _plan_text(planned))
        return
    with Shown() as watcher:
        result = run(job, watcher)
    show(json_text(_result_object(result)) if as_json else _result_text(result))


def _name_of(given: str, source: Path) -> str:
    """The model's name for its files: of a directory or org/name the last part, of a file without the F16."""
    if source.is_dir():
        return (Path(given) if Path(given).exists() else Path(given.rstrip("/"))).resolve().name
    return _WIDTH_OF_WEIGHTS.sub("", source.stem)


def _size_that_fits(source: Path, memory: int, n_ctx: int) -> int:
    from quantmill.gguf_io import open_source
    from quantmill.recipe.fit import fit

    opened = open_source(source)
    try:
        found = fit(memory, n_ctx, opened.metadata)
    finally:
        opened.close()
    remark(found.formula)
    return found.file


def _plan_text(planned: tuple[Planned, ...]) -> str:
    rows = [("file", "candidate", "size")]
    for one in planned:
        most = "at most " if one.candidate.target is not None else ""
        rows.append((one.path.name, one.candidate.label, most + size_text(one.n_bytes)))
    return f"{table_text(rows, right=(2,))}\n\non the disk until the best are chosen: {_most_bytes(planned)}"


def _most_bytes(planned: tuple[Planned, ...]) -> str:
    return size_text(sum(one.n_bytes for one in planned))


def _plan_object(planned: tuple[Planned, ...]) -> dict[str, Any]:
    return {
        "candidates": [
            {
                "file": one.path.name,
                "label": one.candidate.label,
                "bytes": one.n_bytes,
                "is_ceiling": one.candidate.target is not None,
            }
            for one in planned
        ]
    }


def _result_text(result: Result) -> str:
    rows = [("file", "size", "bpw", "KLD mean", "made as", "instead of")]
    for one in result.made:
        chosen = one.chosen
        others = ", ".join(f"{label} {kld:.6f}" for label, kld in one.instead_of.items())
        rows.append(
            (
                one.path.name,
                size_text(chosen.n_bytes),
                f"{chosen.result.file.bits_per_weight:.2f}",
                f"{chosen.kld:.6f}",
                chosen.candidate.label if chosen.candidate.target is None else "types found for the size",
                others or "–",
            )
        )
    stages = f"{result.done} stages done, {result.found} found done, {result.seconds:.0f} s"
    return f"{table_text(rows, right=(1, 2, 3))}\n\n{stages}\n" + "\n".join(map(str, result.pages))


def _result_object(result: Result) -> dict[str, Any]:
    return {
        "files": [
            {
                "path": str(one.path),
                "bytes": one.chosen.n_bytes,
                "kld": one.chosen.kld,
                "made_as": one.chosen.candidate.label,
                "instead_of": dict(one.instead_of),
            }
            for one in result.made
        ],
        "pages": [str(path) for path in result.pages],
        "stages_done": result.done,
        "stages_found": result.found,
        "seconds": result.seconds,
    }
