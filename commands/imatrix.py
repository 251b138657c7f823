"""quantmill imatrix: collect an importance matrix; stats, merge, convert, diff."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from quantmill.commands import imatrix_options as options
from quantmill.commands.console import UsageError, parsing
from quantmill.commands.groups import DefaultGroup
from quantmill.commands.llama_spellings import imatrix_words
from quantmill.commands.options import (
    Chunks,
    Ctx,
    Device,
    Dtype,
    Force,
    GpuLayers,
    Json,
    ModelOption,
    ParseSpecial,
    Ray,
    Resume,
    Stream,
    Threads,
    WithRay,
    at_least,
    device_of,
    models_of,
    output_option,
)
from quantmill.commands.profiling import ProfileOption, shown
from quantmill.commands.watching import Shown


class _CollectByDefault(DefaultGroup):
    """`quantmill imatrix MODEL -f TEXT` means `quantmill imatrix collect MODEL -f TEXT`."""

    default = "collect"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, imatrix_words(args))


app = typer.Typer(
    cls=_CollectByDefault,
    add_completion=False,
    rich_markup_mode=None,
    help="Measure which weights matter. `collect` is the default: quantmill imatrix MODEL -f TEXT -o imatrix.gguf.",
)

Output = Annotated[Path, output_option("File to write; .dat for the legacy format.")]
FileFormat = Annotated[str | None, typer.Option("--output-format", help="gguf or dat. [default: by suffix]")]
ChunkSize = Annotated[
    int | None,
    typer.Option(
        "--ctx",
        "-c",
        "--ctx-size",
        min=1,
        help="Tokens a chunk stands for. [default: the files' own, .dat: 512]",
    ),
]
Shrink = Annotated[
    int,
    typer.Option(
        "--shrink-experts",
        callback=at_least(0),
        help="Draw each expert toward its layer's mean, as if it had seen so many more tokens.",
    ),
]


@app.command("collect", cls=WithRay)
def collect(
    file: options.File,
    model: options.Model = None,
    model_option: ModelOption = None,
    output: Output = Path("imatrix.gguf"),
    output_format: FileFormat = None,
    ctx: Ctx = None,
    chunks: Chunks = None,
    from_chunk: options.FromChunk = 0,
    parse_special: ParseSpecial = False,
    process_output: options.ProcessOutput = False,
    ppl: options.Ppl = True,
    means: options.Means = False,
    route_all_experts: options.RouteAllExperts = False,
    nextn: options.Nextn = False,
    shrink_experts: Shrink = 0,
    seed: options.Seed = None,
    batch: options.Batch = None,
    device: Device = "auto",
    gpu_layers: GpuLayers = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
    stream: Stream = False,
    ray: Ray = None,
    tokenizer: options.Tokenizer = None,
    output_frequency: options.OutputFrequency = 10,
    resume: Resume = False,
    force: Force = False,
    profile: ProfileOption = False,
    as_json: Json = False,
) -> None:
    """Run a model over a text and sum the squares of what enters its matrices."""
    from quantmill.commands.imatrix_tables import show_collected
    from quantmill.imatrix.text import Cutting, text_argument
    from quantmill.jobs.collect import Job, run
    from quantmill.jobs.hub import local_model

    named = models_of([model] if model else None, model_option)
    if len(named) != 1:
        raise UsageError("expected one model: quantmill imatrix MODEL -f TEXT")
    device = device_of(device, gpu_layers)
    path = local_model(named[0])
    with parsing():
        job = Job(
            model=path,
            name=named[0],
            texts=tuple(text_argument(argument) for argument in file),
            output=output,
            format=_format(output_format),
            cutting=Cutting(ctx or 512, chunks, from_chunk, seed, way_out=" or a smaller --ctx-size"),
            parse_special=parse_special,
            process_output=process_output,
            perplexity=ppl,
            with_means=means,
            route_all=route_all_experts,
            nextn=nextn,
            shrink=shrink_experts,
            batch=batch,
            device=device,
            dtype=dtype,
            threads=1 if profile else threads or None,
            tokenizer=tokenizer,
            stream=stream,
            ray=ray,
            every=output_frequency,
            resume=resume,
            force=force,
        )
    with shown(profile, ctx or 512) as watcher:
        result = run(job, watcher)
    show_collected(job, result, as_json)


@app.command("stats")
def stats(
    file: Annotated[Path, typer.Argument(help="Importance matrix, either format.")],
    output: Annotated[Path | None, output_option("Write the statistics here, as .json or .csv.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Heat map layer × kind: .html, .png or .svg.")] = None,
    statistic: Annotated[
        str, typer.Option(help="What to plot: total, mean, std, active, entropy_norm, zd or cossim.")
    ] = "total",
    suggest: Annotated[
        bool,
        typer.Option("--suggest", help="Print a --tensor-type-file from a heuristic (nothing is measured)."),
    ] = False,
    share: Annotated[float, typer.Option(help="Share of a kind's layers to raise, and to lower.")] = 0.25,
    more_type: Annotated[str, typer.Option(help="Type for the most important layers.")] = "Q6_K",
    fewer_type: Annotated[str, typer.Option(help="Type for the least important layers.")] = "Q4_K",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """The statistics of llama-imatrix --show-statistics, by tensor and by layer."""
    from quantmill.commands.imatrix_tables import show_statistics, show_suggestions
    from quantmill.jobs.statistics import Job, run
    from quantmill.recipe import parse_type

    if not 0 < share <= 0.5:
        raise UsageError(f"--share {share}: must lie above 0 and at most at 0.5, half of the layers")
    if suggest and as_json:
        raise UsageError("--suggest prints what --tensor-type-file reads; leave out --json")
    with parsing():
        more_type, fewer_type = parse_type(more_type), parse_type(fewer_type)
        job = Job(file, output, plot, statistic, force)
    with Shown() as watcher:
        rows = run(job, watcher)
    if suggest:
        show_suggestions(rows, share, more_type, fewer_type)
    else:
        show_statistics(rows, as_json)


@app.command("merge")
def merge(
    files: Annotated[list[Path], typer.Argument(help="Importance matrices of one model, either format.")],
    output: Output,
    output_format: FileFormat = None,
    ctx_size: ChunkSize = None,
    shrink_experts: Shrink = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Add importance matrices up, as llama-imatrix does with several --in-file."""
    _merge(files, output, output_format, ctx_size, shrink_experts, force, as_json)


@app.command("convert")
def convert(
    file: Annotated[Path, typer.Argument(help="Importance matrix, either format.")],
    output: Output,
    output_format: FileFormat = None,
    ctx_size: ChunkSize = None,
    shrink_experts: Shrink = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write an importance matrix in the other format."""
    _merge([file], output, output_format, ctx_size, shrink_experts, force, as_json)


@app.command("diff")
def diff(
    first: Annotated[Path, typer.Argument(help="Importance matrix, either format.")],
    second: Annotated[Path, typer.Argument(help="Another of the same model.")],
    n_rows: Annotated[
        int, typer.Option("--rows", help="Show so many tensors, the most different first.")
    ] = 20,
    as_json: Json = False,
) -> None:
    """How far two importance matrices are apart, tensor by tensor."""
    from quantmill.commands.imatrix_tables import show_difference
    from quantmill.imatrix import store
    from quantmill.imatrix.compare import difference

    show_difference(difference(store.load(first), store.load(second)), n_rows, as_json)


def _format(given: str | None) -> Any:
    if given not in (None, "gguf", "dat"):
        raise UsageError(f"--output-format {given}: choose gguf or dat")
    return given


def _merge(
    files: list[Path],
    output: Path,
    format: str | None,
    chunk_size: int | None,
    shrink: int,
    force: bool,
    as_json: bool,
) -> None:
    from quantmill.commands.imatrix_tables import show_merged
    from quantmill.jobs.merge import Job, run

    with parsing():
        job = Job(tuple(files), output, _format(format), chunk_size, shrink, force)
    with Shown() as watcher:
        result = run(job, watcher)
    show_merged(job, result, as_json)
