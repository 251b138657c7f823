"""quantmill convert: a Hugging Face model as a GGUF that is not quantized (or only to Q8_0)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantmill.commands.console import (
    UsageError,
    print_problems,
    print_warnings,
    show,
    size_text,
)
from quantmill.commands.options import (
    Device,
    DryRun,
    Force,
    Json,
    NextnOnly,
    NoNextn,
    OutputOn,
    Ray,
    Revision,
    SourceOn,
    Threads,
    WithRay,
    file_to_write,
    later_layers,
    on_workers,
)
from quantmill.commands.watching import Shown
from quantmill.errors import choices, counted
from quantmill.plain_json import json_text

if TYPE_CHECKING:
    from quantmill.jobs.convert import Conversion
    from quantmill.recipe import Plan

_TYPES = ("auto", "f16", "bf16", "f32", "q8_0")

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(cls=WithRay)
def convert(
    model: Annotated[str, typer.Argument(help="A Hugging Face model directory, or org/name on the hub.")],
    output: Annotated[Path | None, typer.Argument(parser=file_to_write, help="The GGUF to write.")] = None,
    outfile: Annotated[
        Path | None,
        typer.Option("--outfile", "-o", "--output", parser=file_to_write, metavar="FILE", hidden=True),
    ] = None,
    type: Annotated[
        str, typer.Option("--type", "--outtype", help=f"{', '.join(_TYPES[1:])}, or auto: as the checkpoint.")
    ] = "auto",
    fp8_as_q8: Annotated[
        bool, typer.Option("--fp8-as-q8", help="Weights stored as FP8 become Q8_0, whatever --type says.")
    ] = False,
    mmproj: Annotated[
        bool, typer.Option("--mmproj", help="Only the part that sees: encoder of images and projector.")
    ] = False,
    no_nextn: NoNextn = False,
    nextn_only: NextnOnly = False,
    revision: Revision = None,
    device: Device = "auto",
    threads: Threads = None,
    ray: Ray = None,
    source_on: SourceOn = None,
    output_on: OutputOn = None,
    dry_run: DryRun = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Turn a Hugging Face model into a GGUF with the tensors and keys of llama.cpp's convert_hf_to_gguf.py.

    `quantmill quantize` takes the directory itself; this is for those who want the baseline file, and for the file
    that llama.cpp's --mmproj takes.
    """
    if (output is None) == (outfile is None):
        raise UsageError("expected MODEL OUTPUT: give the GGUF to write, once")
    if type.lower() not in _TYPES:
        raise UsageError(f"--type {type}: {choices(type, _TYPES)}")
    from quantmill.jobs.convert import Conversion, plan_conversion
    from quantmill.jobs.hub import local_model

    target = output or outfile
    assert target is not None
    later = later_layers(no_nextn, nextn_only)
    if mmproj and (fp8_as_q8 or no_nextn or nextn_only or ray):
        raise UsageError(
            "--mmproj takes no --fp8-as-q8, --no-nextn, --nextn-only or --ray: these are for the text part"
        )
    source = local_model(model, revision)
    wanted = Conversion(
        source,
        target,
        type,
        device,
        threads or None,
        force,
        fp8_as_q8,
        later,
        ray,
        on_workers("--source-on", source_on, ray, source),
        on_workers("--output-on", output_on, ray, target.parent),
    )
    if mmproj:
        _run_projector(wanted, dry_run, as_json)
    elif dry_run:
        _show_plan(target, plan_conversion(wanted), as_json)
    else:
        _run(wanted, as_json)


def _run(wanted: Conversion, as_json: bool) -> None:
    from quantmill.jobs.convert import run

    with (shown := _Shown()):
        result = run(wanted, shown)
    written = result.written
    _show(wanted, result.type, len(written.plan.entries), written.file_bytes, written.seconds, as_json)


def _run_projector(wanted: Conversion, dry_run: bool, as_json: bool) -> None:
    from quantmill.jobs.projector import run

    result = run(wanted, write=not dry_run)
    print_warnings(result.warnings)
    _show(wanted, result.type, result.n_tensors, result.file_bytes, result.seconds, as_json)


def _show(
    wanted: Conversion, type: str, n_tensors: int, n_bytes: int, seconds: float | None, as_json: bool
) -> None:
    """seconds: None where nothing was written."""
    if as_json:
        facts = {"output": str(wanted.output), "type": type, "tensors": n_tensors, "bytes": n_bytes}
        show(json_text(facts | ({} if seconds is None else {"seconds": round(seconds, 3)})))
        return
    end = "not written" if seconds is None else f"{seconds:.1f} s"
    show(f"{wanted.output}: {type}, {counted(n_tensors, 'tensor')}, {size_text(n_bytes)}, {end}")


def _show_plan(output: Path, plan: Plan, as_json: bool) -> None:
    from quantmill.commands.quantize_tables import plan_object

    if as_json:
        show(json_text(plan_object(plan)))
    else:
        show(f"{output}: {counted(len(plan.entries), 'tensor')}, {size_text(plan.file_bytes)}, not written")
    print_warnings(plan.warnings)
    if plan.problems:
        print_problems(plan.problems)
        raise typer.Exit(1)


class _Shown(Shown):
    """Also shows the plan's warnings."""

    def planned(self, plan: Plan) -> None:
        print_warnings(plan.warnings)
