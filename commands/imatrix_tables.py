"""What `quantmill imatrix` prints: statistics, suggestions, differences, coverage; as text, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantmill.commands.console import show, table_text
from quantmill.imatrix.compare import Difference
from quantmill.imatrix.coverage import Gap
from quantmill.imatrix.statistics import LayerStatistics, TensorStatistics, layer_statistics
from quantmill.imatrix.suggest import suggest

TENSOR_HEAD = (
    "Layer", "Tensor", "Σ(Act²)", "Min", "Max", "μ", "σ", "% Active", "N", "Entropy", "E (norm)", "ZD", "CosSim",
)  # fmt: skip
MEAN_HEAD = ("Layer", "Tensor", "Mean", "StdDev", "Skew", "Kurtosis", "Gain", "L2 dist", "PCC", "Cov")
LAYER_HEAD = ("Layer", "μΣ(Act²)", "μZD", "μCosSim")


def tensor_cells(row: TensorStatistics) -> list[str]:
    """The digits that llama-imatrix prints."""
    return [
        row.layer, row.kind, f"{row.total:.2f}", f"{row.minimum:.4f}", f"{row.maximum:.4f}", f"{row.mean:.2f}",
        f"{row.std:.2f}", f"{100 * row.active:.2f}%", str(row.n), f"{row.entropy:.4f}", f"{row.entropy_norm:.2f}%",
        f"{100 * row.zd:.2f}%", f"{row.cossim:.4f}",
    ]  # fmt: skip


def layer_cells(row: LayerStatistics) -> list[str]:
    return [str(row.layer), f"{row.total:.2f}", f"{100 * row.zd:.4f}%", f"{row.cossim:.4f}"]


def _mean_cells(row: TensorStatistics) -> list[str]:
    means = row.means
    if means is None:
        return [row.layer, row.kind]
    numbers = (
        means.mean, means.std, means.skew, means.kurtosis,
        means.gain, means.l2_distance, means.correlation, means.covariance,
    )  # fmt: skip
    return [row.layer, row.kind, *("-" if number is None else f"{number:.4f}" for number in numbers)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = ()) -> str:
    """A head, a rule and rows; numbers to the right, `left` lists the columns of words."""
    padded = [[*row, *[""] * (len(head) - len(row))] for row in rows]
    lines = table_text([head, *padded], right=[i for i in range(len(head)) if i not in left]).split("\n")
    return "\n".join([lines[0], "-" * max(len(line) for line in lines), *lines[1:]])


def write_to(target: str, content: str) -> None:
    """To a file, or to standard output for `-`."""
    if target == "-":
        show(content)
    else:
        Path(target).write_text(content + "\n", "utf-8")


def as_json(value: Any) -> str:
    """JSON; what is not finite becomes null."""

    def clean(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: clean(inner) for key, inner in item.items()}
        if isinstance(item, list | tuple):
            return [clean(inner) for inner in item]
        return None if isinstance(item, float) and not math.isfinite(item) else item

    return json.dumps(clean(value), indent=1, ensure_ascii=False)


def show_statistics(rows: Sequence[TensorStatistics], json_path: str | None, csv_path: str | None) -> None:
    layers = layer_statistics(rows)
    if json_path is not None:
        record = {"tensors": [asdict(row) for row in rows], "layers": [asdict(row) for row in layers]}
        write_to(json_path, as_json(record))
    if csv_path is not None:
        write_to(csv_path, _csv(rows))
    if "-" in (json_path, csv_path):
        return
    show(_table(TENSOR_HEAD, [tensor_cells(row) for row in rows], left=(1,)))
    if any(row.means is not None for row in rows):
        show("\nFrom the means of the activations (Σx):\n")
        show(_table(MEAN_HEAD, [_mean_cells(row) for row in rows], left=(1,)))
    if layers:
        show(f"\nWeighted average statistics per layer ({len(layers)} layers):\n")
        show(_table(LAYER_HEAD, [layer_cells(row) for row in layers]))


def _csv(rows: Sequence[TensorStatistics]) -> str:
    flat = []
    for row in rows:
        record = asdict(row)
        means = record.pop("means") or {}
        flat.append(record | {f"x_{name}": value for name, value in means.items()})
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, max(flat, key=len), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return buffer.getvalue().rstrip("\n")


def show_suggestions(rows: Sequence[TensorStatistics], share: float, more: str, fewer: str) -> None:
    """Lines as a --tensor-type-file holds them; what is explained stands in comments."""
    found = suggest(rows, share)
    show(
        "# A heuristic: Σ(Act²) and 1 − CosSim, ranked within each kind of tensor. Nothing was measured on the"
    )
    show("# model's output; compare the result with `quantmill evaluate` before keeping it.")
    for one in found:
        show(f"# {one.kind}: most important layers {_numbers(one.more)}; least {_numbers(one.fewer)}")
        for line in one.lines(more, fewer):
            show(line)
    if not found:
        show("# Fewer than four layers: nothing to rank.")


def _numbers(layers: Sequence[int]) -> str:
    return ", ".join(str(layer) for layer in layers)


def show_difference(found: Difference, n_rows: int, json_path: str | None) -> None:
    if json_path is not None:
        write_to(json_path, as_json(asdict(found)))
        if json_path == "-":
            return
    cells = [
        [row.name, f"{row.relative:.3e}", f"{row.total:+.3e}", f"{row.cosine:.8f}", f"{row.counts:.3e}"]
        for row in found.tensors[:n_rows]
    ]
    show(_table(("Tensor", "‖b−a‖/‖a‖", "Σb/Σa−1", "Cosine", "Counts"), cells, left=(0,)))
    if len(found.tensors) > n_rows:
        show(f"… and {len(found.tensors) - n_rows} tensors that differ less")
    for which, names in (("first", found.only_first), ("second", found.only_second)):
        if names:
            show(f"only in the {which}: {', '.join(names)}")


def coverage_table(found: Sequence[Gap], n_rows: int = 30) -> str:
    cells = [
        [
            gap.name,
            str(gap.n_mat),
            str(len(gap.unseen)),
            str(len(gap.few)),
            str(gap.smallest),
            gap.consequence,
        ]
        for gap in found[:n_rows]
    ]
    head = ("Tensor", "Matrices", "Unseen", "Few", "Fewest tokens", "When quantizing")
    table = _table(head, cells, left=(0, 5))
    return table if len(found) <= n_rows else f"{table}\n… and {len(found) - n_rows} more"
