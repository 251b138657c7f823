"""A heat map of one statistic, layer by tensor kind: a PNG (matplotlib) or a page that needs nothing else."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quantmill.gguf_io.kinds import containing
from quantmill.imatrix.matrix import ImatrixError
from quantmill.imatrix.statistics import TensorStatistics

SUFFIXES = (".html", ".png", ".svg")
MARK = "quantmill imatrix"
PLOT = containing("a plot of quantmill", MARK.encode())
STATISTICS = ("total", "mean", "std", "active", "entropy_norm", "zd", "cossim")
TITLES = {
    "total": "Σ(Act²), log10",
    "mean": "μ, log10",
    "std": "σ, log10",
    "active": "% active",
    "entropy_norm": "entropy, % of log2 N",
    "zd": "ZD score, %",
    "cossim": "CosSim to the layer before",
}


def grid(rows: Sequence[TensorStatistics], statistic: str) -> tuple[list[int], list[str], np.ndarray]:
    """Layers, kinds and [n_layers, n_kinds] f64 values; NaN where a layer has no such tensor.

    Raises ImatrixError when no tensor belongs to a layer.
    """
    placed = [(row.layer_number, row) for row in rows if row.layer_number is not None]
    if not placed:
        raise ImatrixError("nothing to plot: no tensor of this importance matrix belongs to a layer")
    layers = sorted({layer for layer, _ in placed})
    kinds = sorted({row.kind for _, row in placed})
    values = np.full((len(layers), len(kinds)), np.nan)
    for layer, row in placed:
        values[layers.index(layer), kinds.index(row.kind)] = _shown(row, statistic)
    return layers, kinds, values


def _shown(row: TensorStatistics, statistic: str) -> float:
    value = float(getattr(row, statistic))
    if statistic in ("total", "mean", "std"):
        return math.log10(value) if value > 0 else math.nan
    if statistic == "cossim" and value == 0:  # the first layer has nothing before it
        return math.nan
    return 100 * value if statistic in ("active", "zd") else value


def require_plot(path: Path | None, statistic: str) -> None:
    """Raises ImatrixError for a statistic or a kind of picture that there is not."""
    if statistic not in STATISTICS:
        raise ImatrixError(f"--statistic {statistic}: choose one of {', '.join(STATISTICS)}")
    if path is not None and path.suffix not in SUFFIXES:
        raise ImatrixError(f"{path}: a plot is a .html, .png or .svg file")


def plot(rows: Sequence[TensorStatistics], suffix: str, title: str, statistic: str = "total") -> bytes:
    """The heat map; suffix .html gives a self-contained page, .png or .svg a picture.

    Raises ImatrixError when matplotlib is needed and missing.
    """
    layers, kinds, values = grid(rows, statistic)
    heading = f"{title}: {TITLES[statistic]}"
    if suffix == ".html":
        return _page(layers, kinds, values, heading).encode()
    return _picture(layers, kinds, values, heading, suffix[1:])


def _picture(layers: list[int], kinds: list[str], values: np.ndarray, heading: str, kind: str) -> bytes:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImatrixError(
            "a picture needs matplotlib: pip install 'quantmill[report]', or choose a .html file"
        ) from error
    figure = Figure(figsize=(2 + 0.45 * len(layers), 1.6 + 0.32 * len(kinds)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(values.T, aspect="auto", cmap="viridis", interpolation="nearest")
    axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_xlabel("layer")
    axes.set_title(heading, fontsize=10)
    figure.colorbar(image, ax=axes)
    return as_file(figure, kind, MARK)


def as_file(figure: Any, kind: str, mark: str) -> bytes:
    """A matplotlib figure as a png or svg that says who made it, so that the output rule knows it again."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=120, metadata={"Software" if kind == "png" else "Creator": mark})
    return buffer.getvalue()


def _page(layers: list[int], kinds: list[str], values: np.ndarray, heading: str) -> str:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    head = "".join(f"<th>{layer}</th>" for layer in layers)
    body = "\n".join(
        f"<tr><th>{html.escape(kind)}</th>"
        + "".join(_cell(values[i, column], low, high) for i in range(len(layers)))
        + "</tr>"
        for column, kind in enumerate(kinds)
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="generator" content="{MARK}"><title>{html.escape(heading)}</title>
<style>
body {{ font: 14px system-ui, sans-serif; margin: 2em; }}
table {{ border-collapse: collapse; }}
th {{ font-weight: normal; text-align: right; padding: 2px 8px; }}
td {{ font-size: 11px; padding: 4px 6px; text-align: right; }}
td.none {{ background: #eee; }}
</style>
<h1>{html.escape(heading)}</h1>
<p>Columns are layers, rows are kinds of tensors; compare cells of one row only.</p>
<table><tr><th>layer</th>{head}</tr>
{body}
</table></html>
"""


def _cell(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return '<td class="none"></td>'
    share = (value - low) / (high - low) if high > low else 0.5
    # from a pale yellow to a deep blue; the text turns white on the dark half
    red, green, blue = (round(a + (b - a) * share) for a, b in ((255, 18), (245, 60), (200, 120)))
    text = "#fff" if share > 0.5 else "#000"
    return f'<td style="background:rgb({red},{green},{blue});color:{text}">{value:.2f}</td>'
