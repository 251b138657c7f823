"""quantmill report: evaluation records as an HTML page and a model card."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantmill.commands.console import show

if TYPE_CHECKING:
    from quantmill.measure.report import HeatMap

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Records that quantmill evaluate --json wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for index.html and README.md.")] = Path(
        "report"
    ),
    title: Annotated[str | None, typer.Option(help="Heading. [default: the base's name]")] = None,
    imatrix: Annotated[Path | None, typer.Option(help="An importance matrix to show by layer.")] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Repository of the original model, for the card.")
    ] = None,
    license_name: Annotated[str | None, typer.Option("--license", help="Licence, for the card.")] = None,
    repository: Annotated[
        str | None, typer.Option("--repo", help="Where the files will lie on the hub, for the card.")
    ] = None,
) -> None:
    """Write a self-contained page (OUT/index.html) and a Hugging Face model card (OUT/README.md)."""
    from quantmill.commands.evaluate import write_whole
    from quantmill.measure.record import from_json
    from quantmill.measure.report import card, collect, page

    maps = [_importance(imatrix)] if imatrix else []
    collected = collect([from_json(path) for path in runs], title, maps)
    texts = {
        "index.html": page(collected),
        "README.md": card(collected, base_model, license_name, repository),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_whole(out / name, text)
        show(str(out / name))


def _importance(path: Path) -> HeatMap:
    """Σ(Act²) of each tensor, on a logarithmic scale within its kind: only one kind's values compare."""
    import numpy as np

    from quantmill.imatrix.plot import grid
    from quantmill.imatrix.statistics import tensor_statistics
    from quantmill.imatrix.store import load
    from quantmill.measure.report import HeatMap

    layers, kinds, values = grid(tensor_statistics(load(path)), "total")
    low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    level = np.nan_to_num((values - low) / np.where(high > low, high - low, 1.0))
    text, hint = [], []
    for layer, row in zip(layers, values.tolist(), strict=True):
        known = [not math.isnan(value) for value in row]
        text.append(tuple(f"{v:.1f}" if k else "" for v, k in zip(row, known, strict=True)))
        hint.append(
            tuple(f"blk.{layer}.{kind}: log10 Σ(Act²) {v:.3f}" for kind, v in zip(kinds, row, strict=True))
        )
    return HeatMap(
        title=f"{path.name}: importance, log10 Σ(Act²), shaded within each kind of tensor",
        kinds=tuple(kinds),
        layers=tuple(str(layer) for layer in layers),
        text=tuple(text),
        level=tuple(map(tuple, level.tolist())),
        hint=tuple(hint),
    )
