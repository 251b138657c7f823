"""quantmill evaluate: perplexity, KL divergence and tasks of GGUF files; quantmill evaluate speed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantmill import __version__
from quantmill.commands.console import command_line, parsing, show
from quantmill.commands.groups import DefaultGroup
from quantmill.commands.options import (
    Chunks,
    Ctx,
    Device,
    Dtype,
    Force,
    GpuLayers,
    Json,
    ModelOption,
    NTasks,
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

if TYPE_CHECKING:
    from quantmill.measure.record import Run


class _CompareByDefault(DefaultGroup):
    """`quantmill evaluate a.gguf` means `quantmill evaluate compare a.gguf`."""

    default = "compare"


app = typer.Typer(
    cls=_CompareByDefault,
    add_completion=False,
    rich_markup_mode=None,
    help="Measure what quantization lost. `compare` is the default: quantmill evaluate --base F16.gguf "
    "--text TEXT a.gguf b.gguf.",
)

Models = Annotated[list[str] | None, typer.Argument(help="GGUF files (of a split model its first file).")]
Output = Annotated[Path | None, output_option("Write the record here: .json for report, .csv for a table.")]


@app.command("compare", cls=WithRay)
def compare(
    models: Models = None,
    model_option: ModelOption = None,
    base: Annotated[
        str | None,
        typer.Option(help="The model to compare with: GGUF, Hugging Face directory or repository."),
    ] = None,
    base_file: Annotated[
        Path | None, typer.Option(help="Its saved predictions: llama.cpp's _logits_ file or ours.")
    ] = None,
    text: Annotated[Path | None, typer.Option("--text", "-f", help="The text to predict.")] = None,
    ctx: Ctx = None,
    chunks: Chunks = None,
    parse_special: ParseSpecial = False,
    save_logits: Annotated[
        Path | None, typer.Option(help="Save the base's predictions in llama.cpp's format.")
    ] = None,
    save_base: Annotated[
        Path | None, typer.Option(help="Save the base's predictions in the compact format.")
    ] = None,
    top_k: Annotated[int, typer.Option(help="Entries a position in the compact format.")] = 1024,
    hellaswag: Annotated[
        Path | None, typer.Option(help="HellaSwag tasks: text of 6 lines a task, or JSONL.")
    ] = None,
    winogrande: Annotated[Path | None, typer.Option(help="WinoGrande tasks: CSV or JSONL.")] = None,
    multiple_choice: Annotated[
        list[Path] | None,
        typer.Option(help="Multiple-choice tasks (ARC, MMLU, TruthfulQA …): .bin or JSONL."),
    ] = None,
    n_tasks: NTasks = None,
    lm_eval: Annotated[
        str | None, typer.Option(help="Tasks of EleutherAI's harness, separated by commas.")
    ] = None,
    lm_eval_limit: Annotated[int | None, typer.Option(help="Examples of each harness task.")] = None,
    device: Device = "auto",
    gpu_layers: GpuLayers = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
    stream: Stream = False,
    ray: Ray = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Hugging Face directory whose tokenizer to use.")
    ] = None,
    details: Annotated[
        bool, typer.Option("--details", help="Print every statistic of llama-perplexity.")
    ] = False,
    output: Output = None,
    resume: Resume = False,
    force: Force = False,
    profile: ProfileOption = False,
    as_json: Json = False,
) -> None:
    """Perplexity, KL divergence and task scores of GGUF files against a base, in one pass."""
    from quantmill.jobs.evaluate import run
    from quantmill.jobs.evaluate_request import Job, TaskJob
    from quantmill.jobs.hub import local_model

    files = [TaskJob("hellaswag", hellaswag)] if hellaswag else []
    files += [TaskJob("winogrande", winogrande)] if winogrande else []
    files += [TaskJob("multiple-choice", path) for path in multiple_choice or ()]
    device = device_of(device, gpu_layers)
    base_path = local_model(base) if base else None
    with parsing():
        job = Job(
            models=tuple(map(Path, models_of(models, model_option))),
            base=base_path,
            base_file=base_file,
            text=text,
            n_ctx=ctx,
            chunks=chunks,
            parse_special=parse_special,
            save_logits=save_logits,
            save_base=save_base,
            top_k=top_k,
            tasks=tuple(files),
            n_tasks=n_tasks,
            lm_eval=tuple(lm_eval.split(",")) if lm_eval else (),
            lm_eval_limit=lm_eval_limit,
            device=device,
            dtype=dtype,
            threads=1 if profile else threads or None,
            tokenizer=tokenizer,
            stream=stream,
            ray=ray,
            output=output,
            resume=resume,
            force=force,
            command=command_line(),
            version=__version__,
        )
    with shown(profile, ctx or 512) as watcher:
        record = run(job, watcher)
    _report(record, details, as_json)


@app.command("speed")
def speed(
    models: Models = None,
    model_option: ModelOption = None,
    tests: Annotated[
        str,
        typer.Option(help="Tests, separated by commas: pp512 reads, tg128 generates, pp1024+tg1024 both."),
    ] = "pp512,tg128,pp1024+tg1024",
    repeats: Annotated[
        int, typer.Option("--repeats", "-r", callback=at_least(1), help="Runs of each test.")
    ] = 5,
    threads: Threads = None,
    repack: Annotated[bool, typer.Option(help="Let llama.cpp rearrange weights for this CPU.")] = True,
    bench: Annotated[
        Path | None, typer.Option(help="A llama-bench binary. [default: on the path, else xllamacpp]")
    ] = None,
    output: Output = None,
    resume: Resume = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Tokens per second of llama.cpp on each file: mean ± standard deviation, size, bits per weight."""
    from quantmill.jobs.speed import Job, run
    from quantmill.measure.speed import SpeedOptions, parse_tests

    with parsing():
        options = SpeedOptions(parse_tests(tests), repeats, threads or None, repack, bench)
        job = Job(
            tuple(map(Path, models_of(models, model_option))),
            options,
            output,
            resume,
            force,
            command_line(),
            __version__,
        )
    with Shown() as watcher:
        record = run(job, watcher)
    _report(record, False, as_json)


def _report(record: Run, details: bool, as_json: bool) -> None:
    from quantmill.commands.evaluation_tables import print_evaluation
    from quantmill.measure.record import to_json

    if as_json:
        show(to_json(record).rstrip("\n"))
    else:
        print_evaluation(record, details)
