"""quantmill imatrix: collect an importance matrix; stats, merge, convert, diff."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from quantmill.commands.console import UsageError, parsing, print_warnings, show
from quantmill.commands.groups import DefaultGroup
from quantmill.commands.options import Chunks, Ctx, Device, Dtype, ParseSpecial, Resume, Threads, at_least


class _CollectByDefault(DefaultGroup):
    """`quantmill imatrix MODEL -f TEXT` means `quantmill imatrix collect MODEL -f TEXT`."""

    default = "collect"


app = typer.Typer(
    cls=_CollectByDefault,
    add_completion=False,
    rich_markup_mode=None,
    help="Measure which weights matter. `collect` is the default: quantmill imatrix MODEL -f TEXT -o imatrix.gguf.",
)

Output = Annotated[Path, typer.Option("--output", "-o", help="File to write; .dat for the legacy format.")]
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
Json = Annotated[str | None, typer.Option("--json", help="Write JSON here; - for standard output.")]
Shrink = Annotated[
    int,
    typer.Option(
        "--shrink-experts",
        callback=at_least(0),
        help="Draw each expert toward its layer's mean, as if it had seen so many more tokens.",
    ),
]


@app.command("collect")
def collect(
    model: Annotated[str, typer.Argument(help="GGUF file, Hugging Face directory or repository name.")],
    file: Annotated[
        list[str],
        typer.Option(
            "--file", "-f", help="Calibration text, or conversations (.jsonl); FILE=WEIGHT for a share."
        ),
    ],
    output: Output = Path("imatrix.gguf"),
    output_format: FileFormat = None,
    ctx: Ctx = None,
    chunks: Chunks = None,
    from_chunk: Annotated[
        int, typer.Option("--from-chunk", "--chunk", help="Skip so many chunks first.")
    ] = 0,
    parse_special: ParseSpecial = False,
    process_output: Annotated[bool, typer.Option(help="Also the output projection, tied or not.")] = False,
    ppl: Annotated[bool, typer.Option(help="Print the text's perplexity while running.")] = True,
    means: Annotated[
        bool, typer.Option(help="Also keep Σx (.in_sum), for the mean-based statistics.")
    ] = False,
    route_all_experts: Annotated[bool, typer.Option(help="Show every token to every expert.")] = False,
    shrink_experts: Shrink = 0,
    seed: Annotated[int | None, typer.Option(help="Shuffle the chunks. [default: in order]")] = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", callback=at_least(1), help="Chunks run together. [default: by free memory]"),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Hugging Face directory whose tokenizer to use.")
    ] = None,
    output_frequency: Annotated[
        int,
        typer.Option("--output-frequency", "-ofreq", help="Save every so many chunks; 0: only when stopped."),
    ] = 10,
    resume: Resume = False,
    json_path: Json = None,
) -> None:
    """Run a model over a text and sum the squares of what enters its matrices."""
    from quantmill.commands.imatrix_collect import Request, collect_and_save

    collect_and_save(
        Request(
            model=model,
            files=tuple(file),
            output=output,
            format=_format(output_format, output),
            n_ctx=ctx or 512,
            n_chunks=chunks,
            from_chunk=from_chunk,
            parse_special=parse_special,
            process_output=process_output,
            perplexity=ppl,
            with_means=means,
            route_all=route_all_experts,
            shrink=shrink_experts,
            seed=seed,
            batch=batch,
            device=device,
            dtype=dtype,
            threads=threads or None,
            tokenizer=tokenizer,
            every=output_frequency,
            resume=resume,
            json_path=json_path,
        )
    )


@app.command("stats")
def stats(
    file: Annotated[Path, typer.Argument(help="Importance matrix, either format.")],
    json_path: Json = None,
    csv_path: Annotated[
        str | None, typer.Option("--csv", help="Write CSV here; - for standard output.")
    ] = None,
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
) -> None:
    """The statistics of llama-imatrix --show-statistics, by tensor and by layer."""
    from quantmill.commands.imatrix_tables import show_statistics, show_suggestions
    from quantmill.imatrix import plot as drawing
    from quantmill.imatrix import store
    from quantmill.imatrix.statistics import tensor_statistics
    from quantmill.recipe import parse_type

    if not 0 < share <= 0.5:
        raise UsageError(f"--share {share}: must lie above 0 and at most at 0.5, half of the layers")
    with parsing():
        more_type, fewer_type = parse_type(more_type), parse_type(fewer_type)
    rows = tensor_statistics(store.load(file))
    if plot is not None:
        drawing.plot(rows, plot, file.name, statistic)
    if suggest:
        show_suggestions(rows, share, more_type, fewer_type)
    else:
        show_statistics(rows, json_path, csv_path)


@app.command("merge")
def merge(
    files: Annotated[list[Path], typer.Argument(help="Importance matrices of one model, either format.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write; .dat for the legacy format.")
    ],
    output_format: FileFormat = None,
    ctx_size: ChunkSize = None,
    shrink_experts: Shrink = 0,
) -> None:
    """Add importance matrices up, as llama-imatrix does with several --in-file."""
    _merge(files, output, output_format, ctx_size, shrink_experts)


@app.command("convert")
def convert(
    file: Annotated[Path, typer.Argument(help="Importance matrix, either format.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write; .dat for the legacy format.")
    ],
    output_format: FileFormat = None,
    ctx_size: ChunkSize = None,
    shrink_experts: Shrink = 0,
) -> None:
    """Write an importance matrix in the other format."""
    _merge([file], output, output_format, ctx_size, shrink_experts)


@app.command("diff")
def diff(
    first: Annotated[Path, typer.Argument(help="Importance matrix, either format.")],
    second: Annotated[Path, typer.Argument(help="Another of the same model.")],
    n_rows: Annotated[
        int, typer.Option("--rows", help="Show so many tensors, the most different first.")
    ] = 20,
    json_path: Json = None,
) -> None:
    """How far two importance matrices are apart, tensor by tensor."""
    from quantmill.commands.imatrix_tables import show_difference
    from quantmill.imatrix import store
    from quantmill.imatrix.compare import difference

    show_difference(difference(store.load(first), store.load(second)), n_rows, json_path)


def _format(given: str | None, output: Path) -> Any:
    if given not in (None, "gguf", "dat"):
        raise typer.BadParameter(f"{given}: choose gguf or dat", param_hint="--output-format")
    return given or ("dat" if output.suffix == ".dat" else "gguf")


def _merge(files: list[Path], output: Path, given: str | None, chunk_size: int | None, shrink: int) -> None:
    from quantmill.imatrix import store
    from quantmill.imatrix.coverage import shrunk
    from quantmill.imatrix.matrix import ImatrixError
    from quantmill.imatrix.merge import strangers

    for path in files:
        if output.exists() and output.samefile(path):
            raise ImatrixError(f"{output}: is an input; choose another output")
    legacy = chunk_size or store.LEGACY_CHUNK_SIZE
    matrices = [store.load(path, legacy) for path in files]
    merged = store.merge(matrices, chunk_size)
    if strange := strangers(matrices):
        names = ", ".join(str(files[i]) for i in strange)
        print_warnings([f"no tensor in common with the other matrices: {names}; are they of one model?"])
    format = _format(given, output)
    store.save(output, shrunk(merged, shrink), format)
    lost = [
        what
        for what, is_lost in (
            ("counts of single experts", any(len(entry.counts) > 1 for entry in merged.entries.values())),
            ("Σx", any(entry.in_sum is not None for entry in merged.entries.values())),
            (f"{len(merged.datasets) - 1} of the datasets' names", len(merged.datasets) > 1),
        )
        if is_lost and format == "dat"
    ]
    show(
        f"{output}: {len(merged.entries)} tensors, {merged.chunk_count} chunks of {merged.chunk_size}"
        + (f"; the .dat format does not keep {', '.join(lost)}" if lost else "")
    )
