"""quantmill polish: train scales, norms and codes of a quantized GGUF against the original; same size and format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantmill.commands.console import parsing, print_line, show, table_text
from quantmill.commands.options import Device, DryRun, Force, Json, Resume, Threads, output_option
from quantmill.commands.watching import Shown
from quantmill.plain_json import json_text

if TYPE_CHECKING:
    from quantmill.jobs.polish_request import Plan, Result

Added = tuple[
    dict[str, Any], str
]  # what a further step adds to a result: to the JSON object, and below the table

NOT_BETTER = 3  # exit code: everything went well, but the file could not be made better

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def polish(
    quant: Annotated[
        Path, typer.Argument(metavar="QUANT", help="A quantized GGUF (of a split model its first file).")
    ],
    base: Annotated[
        str,
        typer.Option(
            metavar="MODEL", help="The original: GGUF, Hugging Face directory or org/name on the hub."
        ),
    ],
    calibration: Annotated[
        list[str],
        typer.Option(
            metavar="TEXT",
            help="Text to learn and to judge on, or conversations (.jsonl); FILE=WEIGHT for a share; repeatable.",
        ),
    ],
    output: Annotated[
        Path | None,
        output_option("[default: QUANT-polished.gguf]"),
    ] = None,
    chunks: Annotated[
        int | None,
        typer.Option(help="Chunks of 512 tokens to take from the text. [default: 72, or all there are]"),
    ] = None,
    epochs: Annotated[int, typer.Option(help="How often to go through them.")] = 1,
    lr: Annotated[
        float | None, typer.Option(help="Highest relative change a step. [default: measured, by type]")
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="scales|norms", help="Train only these. [default: both, and codes]")
    ] = None,
    keep_codes: Annotated[
        bool,
        typer.Option(
            "--keep-codes",
            help="Move no code; else those below 5 bits a weight go to the next where it helps.",
        ),
    ] = False,
    device: Device = "auto",
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="NAME",
            help="Of products: bfloat16, float32 or float16. [default: bfloat16, from 6.3 bits a weight on float32]",
        ),
    ] = None,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="For a model larger than the GPU's memory: its weights stay in main memory, and visit the GPU where "
            "they are multiplied.",
        ),
    ] = False,
    threads: Threads = None,
    resume: Resume = False,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make any quantized GGUF better at the same size, in minutes.

    The scales of the blocks, the F32 norms and the codes that lie near the next one are trained, so that the file
    predicts what the original predicts. Chunks of the text that are held back from training decide: where the result is
    not better on them, nothing is written and the exit code is 3.
    """
    from quantmill.imatrix.text import text_argument
    from quantmill.jobs.hub import local_model
    from quantmill.jobs.polish import Job, plan_job, run
    from quantmill.jobs.polish_facts import plan_text

    with parsing():
        job = Job(
            quant=quant,
            base=local_model(base),
            calibration=tuple(map(text_argument, calibration)),
            output=output,
            n_chunks=chunks,
            n_epochs=epochs,
            rate=lr,
            only=only,
            keep_codes=keep_codes,
            device=device,
            dtype=dtype,
            stream=stream,
            threads=threads or None,
            resume=resume,
            force=force,
        )
    if dry_run:
        plan = plan_job(job)
        show(json_text(plan_object(plan)) if as_json else plan_text(plan))
        return
    with Shown() as watcher:
        result = run(job, watcher)
    show(json_text(result_object(result)) if as_json else result_text(result))
    if not result.helped:
        print_line(f"{not_better(result)}; nothing was written")
        raise typer.Exit(NOT_BETTER)


def polish_made(
    paths: Sequence[Path],
    base: Path,
    texts: Sequence[str],
    threads: int | None,
    device: str,
    resume: bool,
) -> Added:
    """`quantize --polish`: polish the file that was just made, in its place. The plain one stays where it is better."""
    from quantmill.imatrix.text import text_argument
    from quantmill.jobs.polish import Job, polish_in_place

    calibration = tuple(text_argument(text) for text in texts)
    with Shown() as watcher:
        result = polish_in_place(
            Job(paths[0], base, calibration, threads=threads, device=device.split(",")[0], resume=resume),
            watcher,
        )
    text = result_text(result) if result.helped else f"the plain file is kept: polish is {not_better(result)}"
    return {"polish": result_object(result)}, text


def plan_object(plan: Plan) -> dict[str, Any]:
    return {**asdict(plan), "output": str(plan.output)}


def result_text(result: Result) -> str:
    """The held-back chunks before and after."""
    rows = [("", "KLD", "same top", "PPL")]
    for what, found in (("before", result.before), ("after", result.after)):
        rows.append(
            (
                what,
                f"{found.kld.value:.5f} ± {found.kld.error:.5f}",
                f"{100 * found.same_top.value:.2f} %",
                f"{found.ppl.value:.4f}",
            )
        )
    rows.append(("original", "", "", f"{result.before.ppl_base.value:.4f}"))
    ratio = result.after.kld.value / result.before.kld.value
    lines = [
        table_text(rows, right=(1, 2, 3)),
        f"KLD × {ratio:.3f} on {result.plan.n_held_back} held-back chunks",
    ]
    lines += [str(path) for path in result.paths]
    return "\n".join(lines)


def not_better(result: Result) -> str:
    return (
        f"not better on the held-back chunks (KLD {result.before.kld.value:.5f} before, "
        f"{result.after.kld.value:.5f} after, p = {result.test.p_value:.2f})"
    )


def result_object(result: Result) -> dict[str, Any]:
    return {
        "plan": plan_object(result.plan),
        "before": asdict(result.before),
        "after": asdict(result.after),
        "p_value": result.test.p_value,
        "n_steps": result.n_steps,
        "losses": list(result.losses),
        "written": [str(path) for path in result.paths],
    }
