"""quantmill polish: train the scales and norms of a quantized GGUF against the original; same size, same format."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantmill.commands.console import print_line, print_warnings, show, size_text, table_text, tokens_bar
from quantmill.plain_json import json_text

if TYPE_CHECKING:
    from quantmill.jobs.polish_request import Plan, Result

NOT_BETTER = 3  # exit code: everything went well, but the file could not be made better

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
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
    calibration: Annotated[Path, typer.Option(metavar="TEXT", help="The text to learn and to judge on.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="[default: QUANT-polished.gguf]")
    ] = None,
    chunks: Annotated[
        int | None,
        typer.Option(help="Chunks of 512 tokens to take from the text. [default: 104, or all there are]"),
    ] = None,
    epochs: Annotated[int, typer.Option(help="How often to go through them.")] = 1,
    lr: Annotated[
        float | None, typer.Option(help="Highest relative change a step. [default: measured, by type]")
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="scales|norms", help="Train only these. [default: both]")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    dtype: Annotated[
        str | None,
        typer.Option(help="Of products: bfloat16, float32 or float16. [default: float32 from 6.3 bits on]"),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", "-t", help="CPU threads; they do not change the result.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an output that is no GGUF model; never an input.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be trained and the memory; train nothing.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a table.")
    ] = False,
) -> None:
    """Make any quantized GGUF better at the same size, in minutes.

    The integer codes stay; the scales of the blocks and the F32 norms are trained, so that the file predicts what the
    original predicts. Chunks of the text that are held back from training decide: where the result is not better on
    them, nothing is written and the exit code is 3.
    """
    from quantmill.commands.hub import local_model
    from quantmill.jobs.polish import Job, plan_job, run

    job = Job(
        quant=quant,
        base=local_model(base),
        calibration=calibration,
        output=output,
        n_chunks=chunks,
        n_epochs=epochs,
        rate=lr,
        only=only,
        device=device,
        dtype=dtype,
        threads=threads,
        resume=resume,
        force=force,
    )
    if dry_run:
        plan = plan_job(job)
        show(json_text(plan_object(plan)) if as_json else plan_text(plan))
        return
    with Shown() as shown:
        result = run(job, shown)
    show(json_text(result_object(result)) if as_json else result_text(result))
    if not result.helped:
        print_line(not_better(result))
        raise SystemExit(NOT_BETTER)


class Shown:
    """Shows a polish on stderr: what it does and needs, and a bar for each part."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._end()

    def planned(self, plan: Plan) -> None:
        print_warnings(plan.notes)
        print_line(plan_text(plan))

    def began(self, what: str, n_chunks: int) -> None:
        self._end()
        self._bar = tokens_bar(what, n_chunks)
        self._advance = self._bar.__enter__()

    def advanced(self, n_chunks: int, note: str) -> None:
        self._advance(n_chunks, note)

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None


def plan_text(plan: Plan) -> str:
    epochs = "" if plan.n_epochs == 1 else f", {plan.n_epochs} times"
    return (
        f"{plan.output}: {plan.n_moving} scales and vector elements are trained on {plan.n_trained} chunks{epochs}, "
        f"judged on {plan.n_held_back}; products in {plan.dtype}; up to {size_text(plan.memory_bytes)} of memory"
    )


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
        f"{result.after.kld.value:.5f} after, p = {result.test.p_value:.2f}); nothing was written"
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
