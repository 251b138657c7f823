"""quantmill imatrix: collect an importance matrix; stats, merge, convert, diff."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class _CollectByDefault(TyperGroup):
    """`quantmill imatrix MODEL -f TEXT` means `quantmill imatrix collect MODEL -f TEXT`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["collect", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_CollectByDefault,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Measure which weights matter. `collect` is the default: quantmill imatrix MODEL -f TEXT -o imatrix.gguf.",
)

Output = Annotated[Path, typer.Option("--output", "-o", help="File to write; .dat for the legacy format.")]
FileFormat = Annotated[str | None, typer.Option("--output-format", help="gguf or dat. [default: by suffix]")]
ChunkSize = Annotated[
    int | None,
    typer.Option("--ctx-size", "-c", help="Tokens a chunk stands for. [default: the files' own, .dat: 512]"),
]
Json = Annotated[str | None, typer.Option("--json", help="Write JSON here; - for standard output.")]
Shrink = Annotated[
    int, typer.Option(help="Draw each expert toward its layer's mean, as if it had seen so many more tokens.")
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
    ctx_size: Annotated[int, typer.Option("--ctx-size", "-c", help="Tokens in a chunk.")] = 512,
    chunks: Annotated[int | None, typer.Option(help="Run at most so many chunks.")] = None,
    from_chunk: Annotated[
        int, typer.Option("--from-chunk", "--chunk", help="Skip so many chunks first.")
    ] = 0,
    parse_special: Annotated[bool, typer.Option(help="Read control tokens written out in the text.")] = False,
    process_output: Annotated[bool, typer.Option(help="Also the output projection, tied or not.")] = False,
    ppl: Annotated[bool, typer.Option(help="Print the text's perplexity while running.")] = True,
    means: Annotated[
        bool, typer.Option(help="Also keep Σx (.in_sum), for the mean-based statistics.")
    ] = False,
    route_all_experts: Annotated[bool, typer.Option(help="Show every token to every expert.")] = False,
    shrink_experts: Shrink = 0,
    seed: Annotated[int | None, typer.Option(help="Shuffle the chunks. [default: in order]")] = None,
    batch: Annotated[int | None, typer.Option(help="Chunks run together. [default: by free memory]")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    threads: Annotated[int | None, typer.Option("--threads", "-t", help="CPU threads.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Hugging Face directory whose tokenizer to use.")
    ] = None,
    output_frequency: Annotated[
        int,
        typer.Option("--output-frequency", "-ofreq", help="Save every so many chunks; 0: only when stopped."),
    ] = 10,
    resume: Annotated[bool, typer.Option(help="Go on with a run that was stopped.")] = False,
    json_path: Json = None,
) -> None:
    """Run a model over a text and sum the squares of what enters its matrices."""
    from quantmill.commands.console import fail_with_one_line
    from quantmill.commands.imatrix_collect import Request, collect_and_save

    with fail_with_one_line():
        collect_and_save(
            Request(
                model=model,
                files=tuple(file),
                output=output,
                format=_format(output_format, output),
                n_ctx=ctx_size,
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
                threads=threads,
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
        typer.Option("--suggest", help="Print --tensor-type lines from a heuristic (nothing is measured)."),
    ] = False,
    share: Annotated[float, typer.Option(help="Share of a kind's layers to raise, and to lower.")] = 0.25,
    more_type: Annotated[str, typer.Option(help="Type for the most important layers.")] = "Q6_K",
    fewer_type: Annotated[str, typer.Option(help="Type for the least important layers.")] = "Q4_K",
) -> None:
    """The statistics of llama-imatrix --show-statistics, by tensor and by layer."""
    from quantmill.commands.console import fail_with_one_line
    from quantmill.commands.imatrix_tables import show_statistics, show_suggestions

    with fail_with_one_line():
        from quantmill.imatrix import plot as drawing
        from quantmill.imatrix import store
        from quantmill.imatrix.statistics import tensor_statistics

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
    from quantmill.commands.console import fail_with_one_line

    with fail_with_one_line():
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
    from quantmill.commands.console import fail_with_one_line

    with fail_with_one_line():
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
    from quantmill.commands.console import fail_with_one_line
    from quantmill.commands.imatrix_tables import show_difference

    with fail_with_one_line():
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

    for path in files:
        if output.exists() and output.samefile(path):
            raise ImatrixError(f"{output}: is an input; choose another output")
    legacy = chunk_size or store.LEGACY_CHUNK_SIZE
    matrices = [store.load(path, legacy) for path in files]
    merged = store.merge(matrices, chunk_size)
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
    typer.echo(
        f"{output}: {len(merged.entries)} tensors, {merged.chunk_count} chunks of {merged.chunk_size}"
        + (f"; the .dat format does not keep {', '.join(lost)}" if lost else "")
    )
