"""quantmill prune: what layers and experts are worth, measured; and pruned models for others to heal further."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantmill.commands.console import UsageError, parsing, print_warnings, show, size_text, table_text
from quantmill.commands.groups import DefaultGroup
from quantmill.commands.options import Device, Force, Json, Revision, Threads, at_least
from quantmill.commands.pruning import pruned_object, pruned_text, request_of, wanted_pruning
from quantmill.commands.watching import Shown
from quantmill.plain_json import json_text

if TYPE_CHECKING:
    from quantmill.jobs.prune_request import Scan, Set


class _CutByDefault(DefaultGroup):
    """`quantmill prune MODEL --to-hf DIR` means `quantmill prune cut MODEL --to-hf DIR`."""

    default = "cut"


app = typer.Typer(
    cls=_CutByDefault,
    add_completion=False,
    rich_markup_mode=None,
    help="Measure what layers and experts are worth (`scan`), or write a pruned model for others to train: quantmill "
    "prune MODEL --to-hf DIR. `quantmill quantize --prune-layers` makes a pruned GGUF.",
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A GGUF, a Hugging Face directory or org/name.")]
Calibration = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE[=WEIGHT]", help="Text, plain or .jsonl conversations; repeatable."),
]
Chunks = Annotated[
    int | None,
    typer.Option(callback=at_least(1), help="Chunks of 512 tokens, some of them to judge by. [default: 32]"),
]


@app.command("scan")
def scan(
    model: Model,
    calibration: Calibration = None,
    most: Annotated[int, typer.Option(callback=at_least(1), help="Sets of up to so many layers.")] = 2,
    breadth: Annotated[
        int | None, typer.Option(callback=at_least(1), help="Layers that are candidates. [default: 8]")
    ] = None,
    chunks: Chunks = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Damage against bytes saved: a .png or .svg picture.")
    ] = None,
    revision: Revision = None,
    device: Device = "auto",
    threads: Threads = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Say what each layer does to a text, and measure what the model loses without the cheapest.

    Block influence: 1 - cosine of the hidden state before and behind. KLD: divergence from the whole model's
    predictions. Of experts REAP's saliency, tokens routed to them, and AIMER, which needs no text. What was measured is
    kept; a run that was stopped goes on where it was.
    """
    from quantmill.gguf_io.outputs import check_output
    from quantmill.imatrix.text import text_argument
    from quantmill.jobs.hub import local_model
    from quantmill.jobs.prune import scan as run
    from quantmill.jobs.prune_plot import PLOT, picture, require_plot, write
    from quantmill.jobs.prune_request import BREADTH, Request

    with parsing():
        texts = tuple(map(text_argument, calibration or ()))
        request = Request(
            str(local_model(model, revision)),
            texts,
            n_layers=most,
            n_chunks=chunks,
            breadth=breadth or BREADTH,
            device=device.split(",")[0],
            threads=threads or None,
        )
    output = None
    if plot is not None:
        require_plot(plot)
        inputs = [request.model, *(str(text.path) for text in texts)]
        output = check_output(plot, PLOT, inputs, force=force)
        print_warnings(output.warnings)
    with Shown() as watcher:
        found = run(request, watcher)
    if plot is not None and output is not None:
        write(output, picture(found, plot.suffix[1:]))
    show(json_text(scan_object(found)) if as_json else scan_text(found))


@app.command("cut")
def cut(
    model: Model,
    to_hf: Annotated[
        Path | None,
        typer.Option("--to-hf", metavar="DIR", help="Folder to write: safetensors and config.json."),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option("--layers", "--prune-layers", metavar="5,39|auto:N", help="Layers to leave out."),
    ] = None,
    experts: Annotated[
        str | None,
        typer.Option("--experts", "--prune-experts", metavar="PART|N", help="Experts to leave out."),
    ] = None,
    calibration: Calibration = None,
    max_damage: Annotated[str | None, typer.Option(metavar="KLD|none", help="[default: 0.5]")] = None,
    expert_criterion: Annotated[str | None, typer.Option(metavar="best|REAP|strength|count|AIMER")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Average experts that leave into others.")] = False,
    no_heal: Annotated[bool, typer.Option("--no-heal", help="Refit nothing.")] = False,
    revision: Revision = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Write a pruned model as Hugging Face's, for others to heal further.

    As `quantmill quantize --prune-layers` and `--prune-experts` cut and heal it.
    """
    from quantmill.jobs.hub import local_model
    from quantmill.jobs.prune_hf import Job, run

    if to_hf is None:
        raise UsageError(
            "where to: --to-hf DIR (a GGUF is written by quantmill quantize --prune-layers … COPY)"
        )
    wanted = wanted_pruning(
        layers, experts, max_damage, merge, no_heal, expert_criterion, calibration or [], other_use=False
    )
    if not wanted:
        raise UsageError("nothing is pruned: give --layers or --experts")
    source = str(local_model(model, revision))
    request = request_of(wanted, source, device, threads or None) if wanted.measured else None
    with Shown() as watcher:
        result = run(Job(source, to_hf, wanted.layers, wanted.experts, request), watcher)
    lost = {} if result.pruned is None else {"pruning": pruned_object(result.pruned)}
    if as_json:
        show(json_text({"directory": str(to_hf), "bytes": result.n_bytes, **lost}))
        return
    text = "" if result.pruned is None else f"{pruned_text(result.pruned)}\n\n"
    show(f"{text}{to_hf}: {size_text(result.n_bytes)}")


def scan_object(found: Scan) -> dict[str, Any]:
    return {
        "layers": found.n_layers,
        "bytes": found.n_bytes,
        "ppl": found.ppl,
        "chunks": found.n_chunks,
        "measured_chunks": found.n_measured,
        "sets": [_set_object(one) for one in found.sets],
        "best": [_set_object(one) for one in found.best],
        "experts": [vars(one) for one in found.experts],
    }


def _set_object(one: Set) -> dict[str, Any]:
    return {
        "layers": list(one.layers),
        "influence": one.influence,
        "bytes": one.n_bytes,
        "kld": one.kld,
        "ppl": one.ppl,
    }


def scan_text(found: Scan) -> str:
    rows = [("without", "influence", "KLD", "PPL", "saves")]
    best = {one.layers for one in found.best}
    for one in found.sets:
        mark = " *" if one.layers in best else ""
        kld, ppl = ("", "") if one.kld is None or one.ppl is None else (f"{one.kld:.4f}", f"{one.ppl:.3f}")
        saved = f"{100 * one.n_bytes / found.n_bytes:.1f} %"
        rows.append((",".join(map(str, one.layers)) + mark, f"{one.influence:.4f}", kld, ppl, saved))
    parts = [
        table_text(rows, right=(1, 2, 3, 4)),
        f"* the best of its size; the whole model's perplexity is {found.ppl:.3f}. Influence on {found.n_chunks} "
        f"chunks, KLD on {found.n_measured} of them",
    ]
    if found.experts:
        parts += ["", _experts_text(found)]
    return "\n".join(parts)


def _experts_text(found: Scan) -> str:
    rows = [("layer", "expert", "REAP", "tokens", "AIMER")]
    for one in found.experts:
        saliency = "" if one.saliency is None else f"{one.saliency:.4g}"
        routed = "" if one.routed is None else str(one.routed)
        rows.append((str(one.layer), str(one.expert), saliency, routed, f"{one.aimer:.4f}"))
    return table_text(rows, right=(0, 1, 2, 3, 4))
